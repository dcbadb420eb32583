/** Waiting: for a delay, for the network, and never past the deadline. */

/** How long somebody offline is waited for, in milliseconds, before the deadline goes on. */
const OFFLINE_MS_MAX = 10 * 60_000
/** How often it is looked whether the network is back, in milliseconds. */
const LOOK_MS = 500

/** Calls when the signal aborts, now if it did already. Returns how to stop listening. */
export function follow(signal: AbortSignal, onAbort: () => void): () => void {
  signal.addEventListener('abort', onAbort)
  if (signal.aborted) onAbort()
  return () => signal.removeEventListener('abort', onAbort)
}

/** Why work was stopped that took too long. */
export const TOO_LONG = new Error('timeout')
/** A timer that is set to more than this ends at once. */
const TIMER_MS_MAX = 2 ** 31 - 1

/** Work that is stopped after so long, or with the signal; rejects with the reason then. */
export async function within<T>(ms: number, signal: AbortSignal, work: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const stop = new AbortController()
  const leave = follow(signal, () => stop.abort(signal.reason))
  const timer = setTimeout(() => stop.abort(TOO_LONG), Math.min(ms, TIMER_MS_MAX))
  try {
    return await work(stop.signal)
  } catch (error) {
    throw stop.signal.aborted ? stop.signal.reason : error
  } finally {
    clearTimeout(timer)
    leave()
  }
}

/** Rejects with the signal's reason. */
export const sleep = (ms: number, signal: AbortSignal): Promise<void> =>
  within(ms, signal, (it) => new Promise((resolve, reject) => follow(it, () => (it.reason === TOO_LONG ? resolve() : reject()))))

/** A total deadline whose clock stands while the browser is offline. */
export class Deadline {
  #until: number
  constructor(ms: number) {
    this.#until = performance.now() + ms
  }
  get left_ms(): number {
    return Math.max(0, this.#until - performance.now())
  }
  /** Waits until the browser no longer says that it is offline. */
  async online(signal: AbortSignal): Promise<void> {
    for (let waited = 0; globalThis.navigator?.onLine === false && waited < OFFLINE_MS_MAX; waited += LOOK_MS) {
      await sleep(LOOK_MS, signal)
      this.#until += LOOK_MS
    }
  }
}
