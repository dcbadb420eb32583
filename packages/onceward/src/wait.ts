/** Waits for the send lock while another tab sends. */

import { onAbort } from './deadline.js'
import { leaseLock } from './lease.js'
import type { Shared } from './shared.js'
import { openChannel, takeLock, type SendLock } from './tabs.js'

/** How a tab takes the lock, and reads the key of the one that holds it. */
export interface LockProvider {
  /** Takes the lock if it is free. */
  take(id: string, digest: string): Promise<SendLock | undefined>
  /** Waits for the lock. */
  wait(id: string, digest: string, signal: AbortSignal): Promise<SendLock>
  /** Returns the key that was announced last, by the tab that holds or just held the lock, or died while it did. */
  announced(id: string): Promise<string | undefined>
}

/** How long the response may take to arrive after the lock was released, before the sender's key is sent again. */
const RESULT_MS_MAX = 100
const POLL_MS = 50
/** A holder that leaves a ping unanswered this long is suspended: an open `alert`, a frozen renderer. */
const PONG_MS_MAX = 3000

const sleep = (ms: number) => new Promise<void>((resolve) => setTimeout(resolve, ms))

/** Returns the lock, or the response that another tab got for the same content. */
export async function waitForLock(id: string, digest: string, signal: AbortSignal): Promise<SendLock | Response> {
  const provider = navigator.locks ? webLocks : leaseLock(sleep)
  if (!provider) return {}
  const channel = openChannel()
  const stop = new AbortController()
  let isOver = false
  try {
    let pongs = 0
    // Subscribed before the lock is requested, so that no message is missed in between.
    const received = new Promise<Shared>((resolve) => {
      if (channel) channel.onmessage = ({ data }) => {
        if (data.id === id && data.digest === digest) resolve(data.result)
        if (data.pong === id) pongs++
      }
    })
    const free = await provider.take(id, digest)
    if (free) return free

    let leaderKey: string | undefined
    const readKey = async () => {
      // The sender may die at any moment, and its key with it.
      for (; !isOver; await sleep(POLL_MS)) leaderKey = (await provider.announced(id)) ?? leaderKey
    }
    void readKey().catch(() => undefined)
    /** Resolves when the holder is silent, and its key is known. */
    const silence = async (): Promise<SendLock> => {
      for (let before = -1; !channel || !leaderKey || pongs !== before;) {
        before = pongs
        channel?.postMessage({ ping: id })
        await sleep(PONG_MS_MAX)
        if (isOver) break
      }
      return { leaderKey }
    }
    const granted = provider.wait(id, digest, stop.signal)
    onAbort(signal, () => stop.abort())
    let isMine = false
    try {
      const first = await Promise.race([received, silence(), granted])
      if (!('done' in first)) return 'body' in first ? toResponse(first) : first
      const late = await Promise.race([received, sleep(RESULT_MS_MAX)])
      if (late) return toResponse(late)
      isMine = true
      return { ...first, leaderKey: (await provider.announced(id)) ?? leaderKey }
    } finally {
      stop.abort()
      // It may have been granted meanwhile.
      if (!isMine) granted.then((lock) => lock.done?.(), () => undefined)
    }
  } finally {
    isOver = true
    channel?.close()
  }
}

const webLocks: LockProvider = {
  take: (id, digest) => takeLock(id, digest, { ifAvailable: true }),
  wait: async (id, digest, signal) => (await takeLock(id, digest, { signal }))!,
  announced: async (id) => {
    const prefix = `onceward:key:${id}:`
    const names = ((await navigator.locks.query()).held ?? []).map(({ name = '' }) => name).filter((name) => name.startsWith(prefix))
    // The one that was announced last. The key follows the time, and may have colons itself.
    const announced = names.map((name) => /^(\d+):(.*)$/.exec(name.slice(prefix.length))).filter((it) => it !== null)
    return announced.sort((a, b) => Number(b[1]) - Number(a[1]))[0]?.[2]
  },
}

function toResponse({ url, status, headers, body }: Shared): Response {
  return Object.defineProperty(new Response(body.byteLength ? body : null, { status, headers }), 'url', { value: url })
}
