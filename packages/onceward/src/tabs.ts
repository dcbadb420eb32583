/**
 * One sender per intent in a browser. The tab that holds the lock sends; the others get the response by BroadcastChannel. A
 * tab that waited and got none, because the sender failed, died or is suspended, goes on with the *sender's key*: two
 * senders, should it come to that, are still one request for the server.
 */

import { throwIfAborted } from './deadline.js'
import type { Shared } from './shared.js'
import { waitForLock } from './wait.js'

export interface SendLock {
  /** The key that another tab sent for the same intent while this one waited. */
  readonly leaderKey?: string | undefined
  /** Publishes the key that is about to be sent. To be awaited before the first send. */
  readonly announce?: (key: string) => Promise<void>
  /** Releases the lock, and passes the response to the other tabs, if it is for them too. */
  readonly done?: (response?: Shared) => void
}

/** How long the key can still be read by waiting tabs after the lock was released. */
const KEY_VISIBLE_MS = 5000

/** A message between tabs: the response to one content of an intent, or a question whether its sender is alive. */
export type Message = { readonly id: string; readonly digest: string; readonly result: Shared } | { readonly ping: string } | { readonly pong: string }

/** Returns the lock to send for this intent, or the response that another tab got for the same content. */
export async function acquireSendLock(id: string, digest: string, signal: AbortSignal): Promise<SendLock | Response> {
  // Node and its like have no tabs, and a channel would keep their process running.
  if ((globalThis.location?.origin ?? 'null') === 'null') return {}
  // A browser that blocks storage denies locks too, and then there are none.
  const free = navigator.locks && (await takeLock(id, digest, { ifAvailable: true }).catch((): SendLock => ({})))
  if (signal.aborted) free?.done?.()
  throwIfAborted(signal)
  return free ?? waitForLock(id, digest, signal)
}

/** Takes a Web Lock. The key is published in the name of a second lock: the browser itself tells who holds which. */
export async function takeLock(id: string, digest: string, options: LockOptions): Promise<SendLock | undefined> {
  const release = await hold(`onceward:turn:${id}`, options)
  if (!release) return undefined
  const publish = openSender(id, digest)
  let hideKey: (() => void) | undefined
  return {
    announce: async (key) => {
      // Shared: a page that has just sent with this key may still hold it.
      hideKey = await hold(`onceward:key:${id}:${Date.now()}:${key}`, { mode: 'shared' })
    },
    done: (result) => {
      publish(result)
      release()
      if (hideKey) setTimeout(hideKey, KEY_VISIBLE_MS)
    },
  }
}

export const openChannel = () => (globalThis.BroadcastChannel ? new BroadcastChannel('onceward') : undefined)

/** Answers pings for as long as this tab sends: in an event handler, which is not throttled. Returns how to end it. */
export function openSender(id: string, digest: string): (result?: Shared) => void {
  const channel = openChannel()
  if (channel) channel.onmessage = ({ data }) => data.ping === id && channel.postMessage({ pong: id } satisfies Message)
  return (result) => {
    if (result) channel?.postMessage({ id, digest, result } satisfies Message)
    channel?.close()
  }
}

function hold(name: string, options: LockOptions): Promise<(() => void) | undefined> {
  return new Promise((resolve, reject) => {
    navigator.locks.request(name, options, (lock) => lock ? new Promise<void>(resolve) : resolve(undefined)).catch(reject)
  })
}
