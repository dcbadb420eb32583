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

/** Rejects with the signal's reason. */
export function sleep(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => {
      leave()
      resolve()
    }, ms)
    const leave = follow(signal, () => {
      clearTimeout(timer)
      reject(signal.reason as Error)
    })
  })
}

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
