/** Waiting: for a delay, for the network, and never past the deadline. */

/** How long somebody offline is waited for, in milliseconds, before the deadline goes on. */
const OFFLINE_MS_MAX = 10 * 60_000

/** Calls when the signal aborts, now if it did already. Returns how to stop listening. */
export function follow(signal: AbortSignal, onAbort: () => void): () => void {
  signal.addEventListener('abort', onAbort)
  if (signal.aborted) onAbort()
  return () => signal.removeEventListener('abort', onAbort)
}

/** Waits, at most until an event of the page. Rejects with the signal's reason. */
export async function sleep(ms: number, signal?: AbortSignal, event?: string): Promise<void> {
  let wake: (() => void) | undefined
  let leave: (() => void) | undefined
  let timer: ReturnType<typeof setTimeout> | undefined
  try {
    await new Promise<void>((resolve, reject) => {
      timer = setTimeout((wake = () => resolve()), ms)
      if (event) addEventListener(event, wake)
      leave = signal && follow(signal, () => reject(signal.reason as Error))
    })
  } finally {
    clearTimeout(timer)
    leave?.()
    if (event) removeEventListener(event, wake!)
  }
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
  /** Waits until the browser says that it is online, if it said that it is not. */
  async online(signal: AbortSignal): Promise<void> {
    if (globalThis.navigator?.onLine !== false) return
    const begun = performance.now()
    await sleep(OFFLINE_MS_MAX, signal, 'online')
    this.#until += performance.now() - begun
  }
}
