/**
 * One sender per intent in a browser. Whoever holds the turn sends; the others hear the result by BroadcastChannel. A tab
 * that waited and heard nothing, since the sender failed, died or its word was late, goes on with the *sender's key*: so that two
 * senders, should it come to that, still are one request for the server.
 */

import type { Shared } from './shared.js'

export interface Turn {
  /** The key that another tab has sent for the same intent while this one waited. */
  readonly theirKey?: string | undefined
  /** Says which key is about to be sent. To be awaited before the first send. */
  readonly announce?: (key: string) => Promise<void>
  /** Ends the turn, and tells the others what came of it, if it is for them too. */
  readonly done?: (result?: Shared) => void
}

/** For how long after a turn its key can be learned by those who waited. */
const LINGER_MS = 5000

/** What is fetched later gets these handed: by importing them it would have bundlers split what is loaded at once. */
export interface Tools {
  readonly takeLock: typeof takeLock
  readonly tell: typeof tell
}

/** The turn to send for this intent, or the result that another tab got for it. */
export async function turn(id: string, signal: AbortSignal): Promise<Turn | Response> {
  // Node and its like have no tabs, and a channel would keep their process.
  if ((globalThis.location?.origin ?? 'null') === 'null') return {}
  // A browser that blocks storage denies locks too, and then there are no turns.
  const free = navigator.locks && (await takeLock(id, { ifAvailable: true }).catch(() => ({})))
  // What is seldom needed is fetched when it is: another tab sends, or there are no locks, as on plain `http://`.
  return free ?? (await import('./wait.js')).wait(id, signal, { takeLock, tell })
}

/** A turn by Web Locks. The key is told by the name of a second lock, since the browser itself says who holds which. */
async function takeLock(id: string, options: LockOptions): Promise<Turn | undefined> {
  const release = await hold(`onceward:turn:${id}`, options)
  let forget: (() => void) | undefined
  return release && {
    announce: async (key) => {
      // Shared: a page that has just sent with this key may still hold it.
      forget = await hold(`onceward:key:${id}:${Date.now()}:${key}`, { mode: 'shared' })
    },
    done: (result) => {
      tell(id, result)
      release()
      if (forget) setTimeout(forget, LINGER_MS)
    },
  }
}

function tell(id: string, result: Shared | undefined): void {
  if (!result || !globalThis.BroadcastChannel) return
  const channel = new BroadcastChannel('onceward')
  channel.postMessage({ id, result })
  channel.close()
}

function hold(name: string, options: LockOptions): Promise<(() => void) | undefined> {
  return new Promise((resolve, reject) => {
    navigator.locks.request(name, options, (lock) => lock ? new Promise<void>(resolve) : resolve(undefined)).catch(reject)
  })
}
