/** Timeouts, pauses and the total deadline. */

/** Longest wait for the network to come back, in milliseconds. After it the deadline runs again. */
const OFFLINE_MS_MAX = 10 * 60_000
const OFFLINE_POLL_MS = 500
/** A deadline that is noticed this late, in milliseconds, was overslept: the machine was suspended. */
const OVERSLEPT_MS = 2000
/** A longer timer fires at once. */
const TIMER_MS_MAX = 2 ** 31 - 1

/** Rejection of {@link withTimeout} when the time is over. */
export const TIMED_OUT = new Error('timeout')

export const isOffline = () => globalThis.navigator?.onLine === false

/** Returns the reason of an aborted signal. React Native has neither reasons nor `DOMException`. */
export const reasonOf = (signal: AbortSignal): unknown =>
  signal.reason ?? Object.assign(new Error('The operation was aborted'), { name: 'AbortError' })

export function throwIfAborted(signal: AbortSignal | null | undefined): void {
  if (signal?.aborted) throw reasonOf(signal)
}

/** Calls `listener` when the signal aborts, or now if it is aborted. Returns how to stop listening. */
export function onAbort(signal: AbortSignal, listener: () => void): () => void {
  signal.addEventListener('abort', listener)
  if (signal.aborted) listener()
  return () => signal.removeEventListener('abort', listener)
}

/** Runs work that is stopped, and rejects, when the time is over or the signal aborts. */
export async function withTimeout<T>(ms: number, signal: AbortSignal, work: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const stop = new AbortController()
  let stopListening: (() => void) | undefined
  let timer: ReturnType<typeof setTimeout> | undefined
  const stopped = new Promise<never>((_, reject) => {
    const end = (reason: unknown) => {
      reject(reason as Error)
      stop.abort(reason)
    }
    stopListening = onAbort(signal, () => end(reasonOf(signal)))
    timer = setTimeout(() => end(TIMED_OUT), Math.min(ms, TIMER_MS_MAX))
  })
  try {
    return await Promise.race([stopped, work(stop.signal)])
  } finally {
    clearTimeout(timer)
    stopListening!()
  }
}

/** Waits; rejects with the signal's reason. */
export const sleep = (ms: number, signal: AbortSignal): Promise<void> =>
  withTimeout(ms, signal, () => new Promise<never>(() => undefined)).catch((error: unknown) => {
    if (error !== TIMED_OUT) throw error
  })

/** Total deadline. Its clock stops while the browser is offline. */
export class Deadline {
  #until: number
  /** True once the browser was offline. */
  wasOffline = false
  constructor(ms: number) {
    this.#until = performance.now() + ms
  }
  get remainingMs(): number {
    return Math.max(0, this.#until - performance.now())
  }
  get isOverslept(): boolean {
    return performance.now() - this.#until > OVERSLEPT_MS
  }
  /** Waits until the browser no longer reports that it is offline. */
  async online(signal: AbortSignal): Promise<void> {
    for (let waited = 0; isOffline() && waited < OFFLINE_MS_MAX; waited += OFFLINE_POLL_MS) {
      this.wasOffline = true
      await sleep(OFFLINE_POLL_MS, signal)
      this.#until += OFFLINE_POLL_MS
    }
  }
}
