/**
 * One sender per intent in a browser. Whoever holds the turn sends; the others hear the result by BroadcastChannel. A tab
 * that waited and heard nothing, since the sender died or its word was late, goes on with the *sender's key*: so that two
 * senders, should it come to that, still are one request for the server.
 */

import { follow, sleep } from './patience.js'
import type { Shared } from './shared.js'

export interface Turn {
  /** The key that another tab has sent for the same intent while this one waited. */
  readonly theirKey: string | undefined
  /** Says which key is about to be sent. To be awaited before the first send. */
  announce(key: string): Promise<void>
  /** Ends the turn, and tells the others what came of it, if it is for them too. */
  done(result?: Shared): void
}

/** How a tab holds the turn, and learns the key of the one that does. */
export interface Hold {
  announce(key: string): Promise<void>
  release(): void
}
export interface Holder {
  /** Takes the turn if nobody has it. */
  take(id: string): Promise<Hold | undefined>
  /** Waits for the turn. */
  wait(id: string, signal: AbortSignal): Promise<Hold>
  /** The key that was announced last for it, by whoever holds or just held the turn, or died while it did. */
  announced(id: string): Promise<string | undefined>
}

/** For how long after a turn its key can be learned by those who waited. */
const LINGER_MS = 5000
/** How long somebody who waited gives the result to arrive before sending again with the sender's key. */
const RESULT_MS_MAX = 100
const POLL_MS = 50

/** Alone: where there are no other tabs. */
const ALONE: Turn = { theirKey: undefined, announce: () => Promise.resolve(), done: () => undefined }

/** The turn to send for this intent, or the result that another tab got for it. */
export async function turn(id: string, signal: AbortSignal): Promise<Turn | Shared> {
  const holder = await holderOf()
  if (!holder) return ALONE
  const channel = globalThis.BroadcastChannel && new BroadcastChannel('onceward')
  let isOver = false
  try {
    // Heard from before the turn is asked for, so that no word is missed in between.
    const heard = new Promise<Shared>((resolve) => {
      if (channel) channel.onmessage = ({ data }: MessageEvent<{ id: string; result: Shared }>) => data.id === id && resolve(data.result)
    })
    const mine = (hold: Hold, theirKey?: string): Turn => ({
      theirKey,
      announce: hold.announce,
      done: (result) => {
        if (result && channel) {
          const told = new BroadcastChannel('onceward')
          told.postMessage({ id, result })
          told.close()
        }
        hold.release()
      },
    })
    const free = await holder.take(id)
    if (free) return mine(free)

    let theirKey: string | undefined
    const learn = async () => {
      // The sender may die at any moment, and its key with it.
      for (; !isOver; await sleep(POLL_MS)) theirKey = (await holder.announced(id)) ?? theirKey
    }
    void learn().catch(() => undefined)
    const stop = new AbortController()
    const leave = follow(signal, () => stop.abort(signal.reason))
    const granted = holder.wait(id, stop.signal)
    try {
      const first = await Promise.race([heard, granted])
      if (!('release' in first)) {
        stop.abort()
        // It may have been granted all the same.
        granted.then((hold) => hold.release(), () => undefined)
        return first
      }
      const late = await Promise.race([heard, sleep(RESULT_MS_MAX)])
      if (!late) return mine(first, (await holder.announced(id)) ?? theirKey)
      first.release()
      return late
    } finally {
      leave()
    }
  } finally {
    isOver = true
    channel?.close()
  }
}

async function holderOf(): Promise<Holder | undefined> {
  // Node and its like have no tabs, and a channel would keep their process.
  if (typeof location === 'undefined' || location.origin === 'null') return undefined
  // Fetched where it is needed alone: on plain `http://`, which knows no locks.
  return navigator.locks ? byLocks(navigator.locks) : (await import('./lease.js')).byLease()
}

/** Web Locks. The key is told by the name of a second lock, since the browser itself says who holds which. */
function byLocks(locks: LockManager): Holder {
  const hold = (name: string, options: LockOptions) =>
    new Promise<(() => void) | undefined>((resolve, reject) => {
      locks
        .request(name, options, (lock) => lock ? new Promise<void>((release) => resolve(release)) : resolve(undefined))
        .catch(reject)
    })
  const turnOf = (id: string) => `onceward:turn:${id}`
  const keyOf = (id: string) => `onceward:key:${id}:`
  const held = (id: string, release: () => void): Hold => {
    let forget: (() => void) | undefined
    return {
      announce: async (key) => {
        // Shared: a page that has just sent with this key still holds it.
        forget = await hold(`${keyOf(id)}${Date.now()}:${key}`, { mode: 'shared' })
      },
      release: () => {
        release()
        if (forget) setTimeout(forget, LINGER_MS)
      },
    }
  }
  return {
    take: async (id) => {
      const release = await hold(turnOf(id), { ifAvailable: true })
      return release && held(id, release)
    },
    wait: async (id, signal) => held(id, (await hold(turnOf(id), { signal }))!),
    announced: async (id) => {
      const names = ((await locks.query()).held ?? []).map((lock) => lock.name ?? '').filter((name) => name.startsWith(keyOf(id)))
      // The one that was announced last. What follows the time is the key, which may have colons itself.
      const told = names.map((name) => /^(\d+):(.*)$/.exec(name.slice(keyOf(id).length))).filter((it) => it !== null)
      return told.sort((a, b) => Number(b[1]) - Number(a[1]))[0]?.[2]
    },
  }
}
