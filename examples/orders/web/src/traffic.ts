import type { Client } from './cart.js'
import { kept } from './kept.js'
import { take } from './troubles.js'

/** One request that this tab sent. */
export interface Sent {
  readonly n: number
  readonly client: Client
  readonly what: string
  /** The end of its key. */
  readonly key: string
  /** `left`: the page was left before there was an answer. */
  readonly state: 'waiting' | 'answered' | 'lost' | 'left'
  readonly status?: number
  readonly outcome?: string
  readonly ms?: number
}

const SHOWN_MAX = 40

export const traffic = kept<readonly Sent[]>('sessionStorage', 'counter.traffic', () => [])
traffic.set(traffic.get().map((it) => (it.state === 'waiting' ? { ...it, state: 'left' } : it)))

const change = (n: number, part: Partial<Sent>) => traffic.set(traffic.get().map((it) => (it.n === n ? { ...it, ...part } : it)))

/** `fetch`, with what goes wrong, and seen by the list. */
export async function send(client: Client, request: Request): Promise<Response> {
  const n = (traffic.get()[0]?.n ?? 0) + 1
  const key = (request.headers.get('idempotency-key') ?? '').replace(/"/g, '').slice(-6)
  const path = new URL(request.url).pathname.replace('/.idempotency/', '')
  traffic.set([{ n, client, what: `${request.method} ${path}`, key, state: 'waiting' } as Sent, ...traffic.get()].slice(0, SHOWN_MAX))
  const trouble = request.method === 'POST' ? take(client) : undefined
  if (trouble) request.headers.set('demo-network', trouble)
  const begun = performance.now()
  const ms = () => Math.round(performance.now() - begun)
  try {
    const response = await fetch(request)
    const outcome = response.headers.get('idempotency-outcome')
    change(n, { state: 'answered', status: response.status, ms: ms(), ...(outcome && { outcome }) })
    return response
  } catch (error) {
    change(n, { state: 'lost', ms: ms() })
    throw error
  }
}
