/** Turns by a lease in `localStorage`, where there are no Web Locks: plain `http://` on a LAN. */

import type { Tools, Turn } from './tabs.js'
import type { Holder } from './wait.js'

interface Lease {
  /** Who holds it; empty: it was given back. */
  readonly holder: string
  readonly key: string
  readonly until: number
}

/** As with Web Locks: for how long after a turn its key can be learned by those who waited. */
const LINGER_MS = 5000
const LEASE_MS = 5000
/** Longer than two tabs take to see each other's writes. */
const SETTLE_MS = 40
const POLL_MS = 100

/** Two tabs that write at once see who wrote last, and the other waits. `undefined`: there is no storage to share. */
export function byLease({ tell }: Tools, sleep: (ms: number) => Promise<void>): Holder | undefined {
  let storage: Storage
  try {
    storage = localStorage
  } catch {
    return undefined
  }
  const name = (id: string) => `onceward-turn:${id}`
  const read = (id: string): Lease | undefined => {
    try {
      return (JSON.parse(storage.getItem(name(id)) ?? 'null') as Lease | null) ?? undefined
    } catch {
      return undefined
    }
  }
  const write = (id: string, lease: Lease) => {
    // Full or blocked: then there are no turns, and the same key over all attempts is what remains.
    try { storage.setItem(name(id), JSON.stringify(lease)) } catch { /* as said */ }
  }

  const take = async (id: string): Promise<Turn | undefined> => {
    const found = read(id)
    if (found?.holder && found.until > Date.now()) return undefined
    const holder = `${Date.now()}.${Math.random()}`
    // Kept for those who waited: it is what the tab before them sent.
    let key = found && (found.holder || found.until > Date.now()) ? found.key : ''
    const renew = () => write(id, { holder, key, until: Date.now() + LEASE_MS })
    renew()
    await sleep(SETTLE_MS + Math.random() * SETTLE_MS)
    const now = read(id)
    if (now && now.holder !== holder) return undefined
    const timer = setInterval(() => read(id)?.holder === holder && renew(), LEASE_MS / 3)
    return {
      announce: async (next) => {
        key = next
        renew()
      },
      done: (result) => {
        tell(id, result)
        clearInterval(timer)
        if (read(id)?.holder !== holder) return
        write(id, { holder: '', key, until: Date.now() + LINGER_MS })
        setTimeout(() => read(id)?.holder === '' && storage.removeItem(name(id)), LINGER_MS)
      },
    }
  }
  return {
    take,
    wait: async (id, signal) => {
      for (;;) {
        signal.throwIfAborted()
        const turn = await take(id)
        if (turn) return turn
        await sleep(POLL_MS)
      }
    },
    announced: async (id) => {
      const found = read(id)
      // One that was given back counts only for a while: what comes later is another intent.
      return found && (found.holder || found.until > Date.now()) ? found.key || undefined : undefined
    },
  }
}
