import type { Client } from './cart.js'
import { kept } from './kept.js'

export const TROUBLES = {
  lose: { title: 'The answer is lost', hint: 'The server executes, and the network drops its answer.', network: true },
  slow: { title: 'The network is slow', hint: 'The answer takes 3 seconds. Not everybody waits.', network: true },
  kill: { title: 'The server is killed', hint: 'kill -9 right after it executed, and a new start.', network: true },
  double: { title: 'A double click', hint: 'The button is pressed twice.', network: false },
  refresh: { title: 'A refresh in the middle', hint: 'The page is loaded again, and the button pressed again.', network: false },
  tab: { title: 'A second tab', hint: 'A copy of this tab opens, and orders too.', network: false },
} as const

export type Trouble = keyof typeof TROUBLES

export const switches = kept<readonly Trouble[]>('sessionStorage', 'counter.troubles', () => [])

export function toggle(trouble: Trouble): void {
  const on = switches.get()
  if (on.includes(trouble)) return switches.set(on.filter((it) => it !== trouble))
  // A network is bad in one way at a time.
  const others = TROUBLES[trouble].network ? on.filter((it) => !TROUBLES[it].network) : on
  switches.set([...others, trouble])
}

/** What the network is still to do to the next request of each client: only the first one of a press meets it. */
const armed = new Map<Client, string>()

export function arm(ticket: string): void {
  const on = switches.get()
  const bad = on.find((it) => TROUBLES[it].network)
  // A refresh or another tab comes while the request takes.
  const slow = on.includes('refresh') || on.includes('tab') ? 'slow' : undefined
  const value = bad === 'kill' ? `kill ${ticket}` : (bad ?? slow)
  for (const client of ['onceward', 'naive'] as const) value ? armed.set(client, value) : armed.delete(client)
}

export function take(client: Client): string | undefined {
  const value = armed.get(client)
  armed.delete(client)
  return value
}
