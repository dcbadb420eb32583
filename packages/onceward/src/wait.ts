/** Waiting for the turn, while another tab sends. */

import { byLease } from './lease.js'
import type { Shared } from './shared.js'
import type { Tools, Turn } from './tabs.js'

/** How a tab takes the turn, and learns the key of the one that has it. */
export interface Holder {
  /** Takes the turn if nobody has it. */
  take(id: string): Promise<Turn | undefined>
  /** Waits for the turn. */
  wait(id: string, signal: AbortSignal): Promise<Turn>
  /** The key that was announced last for it, by whoever has or just had the turn, or died while it did. */
  announced(id: string): Promise<string | undefined>
}

/** How long somebody who waited gives the result to arrive before sending again with the sender's key. */
const RESULT_MS_MAX = 100
const POLL_MS = 50

const sleep = (ms: number) => new Promise<void>((resolve) => setTimeout(resolve, ms))

/** The turn, or the response that another tab got. */
export async function wait(id: string, signal: AbortSignal, tools: Tools): Promise<Turn | Response> {
  const holder = navigator.locks ? byLocks(tools) : byLease(tools, sleep)
  if (!holder) return {}
  const channel = globalThis.BroadcastChannel && new BroadcastChannel('onceward')
  let isOver = false
  try {
    // Heard from before the turn is asked for, so that no word is missed in between.
    const heard = new Promise<Shared>((resolve) => {
      if (channel) channel.onmessage = ({ data }: MessageEvent<{ id: string; result: Shared }>) => data.id === id && resolve(data.result)
    })
    const free = await holder.take(id)
    if (free) return free

    let theirKey: string | undefined
    const learn = async () => {
      // The sender may die at any moment, and its key with it.
      for (; !isOver; await sleep(POLL_MS)) theirKey = (await holder.announced(id)) ?? theirKey
    }
    void learn().catch(() => undefined)
    const stop = new AbortController()
    const onAbort = () => stop.abort(signal.reason)
    signal.addEventListener('abort', onAbort)
    if (signal.aborted) onAbort()
    const granted = holder.wait(id, stop.signal)
    try {
      const first = await Promise.race([heard, granted.then((turn) => ({ turn }))])
      if (!('turn' in first)) {
        stop.abort()
        // It may have been granted all the same.
        granted.then((turn) => turn.done?.(), () => undefined)
        return revive(first)
      }
      const late = await Promise.race([heard, sleep(RESULT_MS_MAX)])
      if (!late) return { ...first.turn, theirKey: (await holder.announced(id)) ?? theirKey }
      first.turn.done?.()
      return revive(late)
    } finally {
      signal.removeEventListener('abort', onAbort)
    }
  } finally {
    isOver = true
    channel?.close()
  }
}

function byLocks({ takeLock }: Tools): Holder {
  return {
    take: (id) => takeLock(id, { ifAvailable: true }),
    wait: async (id, signal) => (await takeLock(id, { signal }))!,
    announced: async (id) => {
      const prefix = `onceward:key:${id}:`
      const names = ((await navigator.locks.query()).held ?? []).map(({ name = '' }) => name).filter((name) => name.startsWith(prefix))
      // The one that was announced last. What follows the time is the key, which may have colons itself.
      const told = names.map((name) => /^(\d+):(.*)$/.exec(name.slice(prefix.length))).filter((it) => it !== null)
      return told.sort((a, b) => Number(b[1]) - Number(a[1]))[0]?.[2]
    },
  }
}

function revive({ url, status, headers, body }: Shared): Response {
  return Object.defineProperty(new Response(body.byteLength ? body : null, { status, headers }), 'url', { value: url })
}
