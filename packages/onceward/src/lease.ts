/** Send locks by a lease in `localStorage`, where there are no Web Locks: plain `http://` on a LAN. */

import { throwIfAborted } from './deadline.js'
import { openSender, type SendLock } from './tabs.js'
import type { LockProvider } from './wait.js'

interface Lease {
  /** The tab that holds it; empty: it was released. */
  readonly holder: string
  readonly key: string
  readonly until: number
}

/** As with Web Locks: how long the key can still be read after the release. */
const KEY_VISIBLE_MS = 5000
const LEASE_MS = 5000
/** Longer than two tabs take to see each other's writes. */
const SETTLE_MS = 40
const POLL_MS = 100

/** Of two tabs that write at once, the last writer holds the lease. `undefined`: there is no shared storage. */
export function leaseLock(sleep: (ms: number) => Promise<void>): LockProvider | undefined {
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
    // Full or blocked: then there are no locks, only the same key over all attempts.
    try { storage.setItem(name(id), JSON.stringify(lease)) } catch { /* see above */ }
  }

  const take = async (id: string, digest: string): Promise<SendLock | undefined> => {
    const found = read(id)
    if (found?.holder && found.until > Date.now()) return undefined
    const holder = `${Date.now()}.${Math.random()}`
    // Kept for the tabs that waited: it is what the tab before them sent.
    let key = found && (found.holder || found.until > Date.now()) ? found.key : ''
    const renew = () => write(id, { holder, key, until: Date.now() + LEASE_MS })
    renew()
    await sleep(SETTLE_MS + Math.random() * SETTLE_MS)
    const now = read(id)
    if (now && now.holder !== holder) return undefined
    const timer = setInterval(() => read(id)?.holder === holder && renew(), LEASE_MS / 3)
    const publish = openSender(id, digest)
    return {
      announce: async (next) => {
        key = next
        renew()
      },
      done: (result) => {
        publish(result)
        clearInterval(timer)
        if (read(id)?.holder !== holder) return
        write(id, { holder: '', key, until: Date.now() + KEY_VISIBLE_MS })
        setTimeout(() => read(id)?.holder === '' && storage.removeItem(name(id)), KEY_VISIBLE_MS)
      },
    }
  }
  return {
    take,
    wait: async (id, digest, signal) => {
      for (;;) {
        throwIfAborted(signal)
        const lock = await take(id, digest)
        if (lock) return lock
        await sleep(POLL_MS)
      }
    },
    announced: async (id) => {
      const found = read(id)
      // A released one is valid only for a while: what comes later is another intent.
      return found && (found.holder || found.until > Date.now()) ? found.key || undefined : undefined
    },
  }
}
