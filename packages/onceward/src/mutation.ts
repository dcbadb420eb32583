/** A mutation that can be looked at: what an adapter of a framework subscribes to. */

import { canonical } from './canonical.js'
import { idempotentFetch } from './default.js'
import type { AdapterInit, IdempotentFetch } from './idempotentFetch.js'
import { digest as digestOf, encode } from './digest.js'
import { newKey } from './key.js'
import { sleep } from './patience.js'
import { look } from './recall.js'
import { WAIT_SECONDS } from './send.js'
import type { Executed } from './wire.js'

export interface MutationContext {
  /** `fetch` under the mutation's key. A second call in one mutation has a key of its own. */
  readonly fetch: (input: RequestInfo | URL, init?: RequestInit) => Promise<Response>
  /** The key, for other transports: the same for each call with this intent and payload, until one succeeds. */
  readonly key: string
  /** Aborts at `reset`. */
  readonly signal: AbortSignal
}

export interface MutationOptions<Data, Variables> {
  /** What the person means, such as `checkout:7`. */
  readonly intent: string
  readonly mutationFn: (variables: Variables, context: MutationContext) => Promise<Data>
  /** Makes the data of an answer that an earlier page asked for. Default: JSON, else text; throws if it is not `ok`. */
  readonly restore?: (response: Response) => Data | Promise<Data>
  /** From `createIdempotentFetch`. Default: `idempotentFetch`. */
  readonly fetch?: IdempotentFetch
}

export type MutationState<Data, Variables> =
  | { readonly status: 'idle'; readonly data: undefined; readonly error: null; readonly variables: undefined }
  | { readonly status: 'pending'; readonly data: undefined; readonly error: null; readonly variables: Variables | undefined }
  | { readonly status: 'success'; readonly data: Data; readonly error: null; readonly variables: Variables | undefined }
  | { readonly status: 'error'; readonly data: undefined; readonly error: Error; readonly variables: Variables | undefined }
  /** An earlier page sent it, and its answer is not here: mutating the same asks for it under the same key. */
  | { readonly status: 'interrupted'; readonly data: undefined; readonly error: null; readonly variables: undefined; readonly executed: Executed }

const IDLE = { status: 'idle', data: undefined, error: null, variables: undefined } as const

export class Mutation<Data, Variables> {
  #options: MutationOptions<Data, Variables>
  #state: MutationState<Data, Variables> = IDLE
  readonly #listeners = new Set<() => void>()
  #running: { payload: string; promise: Promise<Data>; stop: AbortController } | undefined
  #recalling: AbortController | undefined

  constructor(options: MutationOptions<Data, Variables>) {
    this.#options = options
  }

  readonly get = (): MutationState<Data, Variables> => this.#state
  readonly subscribe = (listener: () => void): (() => void) => {
    this.#listeners.add(listener)
    return () => void this.#listeners.delete(listener)
  }
  update(options: MutationOptions<Data, Variables>): void {
    this.#options = options
  }

  /** Asks what became of an earlier page's request; sends nothing that takes effect. Returns how to stop asking. */
  recall(): () => void {
    const stop = (this.#recalling = new AbortController())
    void this.#recall(stop.signal).catch(() => undefined)
    return () => stop.abort()
  }

  /** Sends. While the same runs already, that is the same intent: both get its result. */
  readonly mutate = (variables: Variables): Promise<Data> => {
    this.#recalling?.abort()
    const payload = textOf(variables)
    if (this.#running?.payload === payload) return this.#running.promise
    const stop = new AbortController()
    const promise = this.#run(variables, payload, stop.signal)
    const running = (this.#running = { payload, promise, stop })
    this.#set({ status: 'pending', data: undefined, error: null, variables })
    const settle = (state: MutationState<Data, Variables>) => {
      // The state follows the latest; one that was reset is nobody's any longer.
      if (this.#running !== running) return
      this.#running = undefined
      this.#set(state)
    }
    promise.then(
      (data) => settle({ status: 'success', data, error: null, variables }),
      (error: unknown) => settle({ status: 'error', data: undefined, error: asError(error), variables }),
    )
    return promise
  }

  /** Back to idle. What runs is aborted; its key is kept. */
  readonly reset = (): void => {
    this.#recalling?.abort()
    this.#running?.stop.abort()
    this.#running = undefined
    this.#set(IDLE)
  }

  async #run(variables: Variables, payload: string, signal: AbortSignal): Promise<Data> {
    const { intent, mutationFn, fetch = idempotentFetch } = this.#options
    const reserved = await reserve(fetch, intent, payload)
    const settled: { readonly status: number; readonly letGo: () => Promise<void> }[] = []
    let calls = 0
    const context: MutationContext = {
      signal,
      get key() {
        return reserved.key ?? noKey()
      },
      fetch: async (input, init) => {
        calls += 1
        let letGo: (() => Promise<void>) | undefined
        const adapter: AdapterInit = {
          signal,
          ...init,
          intent: calls === 1 ? intent : `${intent}#${calls}`,
          payload,
          onSettled: (go) => void (letGo = go),
        }
        let status = 0
        try {
          const response = await fetch(input, adapter)
          status = response.status
          return response
        } finally {
          if (letGo) settled.push({ status, letGo })
        }
      },
    }
    try {
      const data = await mutationFn(variables, context)
      await (calls === 0 ? reserved.letGo() : Promise.all(settled.map(({ letGo }) => letGo())))
      return data
    } catch (error) {
      // It was executed and answered, and then something here went wrong: the next one is to get that answer again.
      const isOver = ({ status }: (typeof settled)[number]) => status === 0 || status >= 400
      await Promise.all(settled.filter(isOver).map(({ letGo }) => letGo()))
      throw error
    }
  }

  async #recall(signal: AbortSignal): Promise<void> {
    const { intent, fetch = idempotentFetch, restore = read } = this.#options
    // At once, so that the page can say that it is pending; from then on the server holds the question.
    for (let wait = 0; ; wait = fetch.inner.options.wait ?? WAIT_SECONDS) {
      const recalled = await look(fetch, intent, { signal, wait })
      if (signal.aborted || this.#running) return
      switch (recalled.state) {
        case 'none':
          return
        case 'answered':
          // Its key goes where it was shown: else whoever looks next is to get it, as when `mutationFn` fails at it.
          try {
            const data = (await restore(recalled.response)) as Data
            if (signal.aborted) return
            this.#set({ status: 'success', data, error: null, variables: undefined })
          } catch (error) {
            if (signal.aborted) return
            this.#set({ status: 'error', data: undefined, error: asError(error), variables: undefined })
            if (recalled.response.status < 400) return
          }
          return recalled.letGo()
        case 'interrupted':
          return this.#set({ status: 'interrupted', data: undefined, error: null, variables: undefined, executed: recalled.executed })
        case 'in-flight':
          this.#set({ status: 'pending', data: undefined, error: null, variables: undefined })
          if (wait > 0) await sleep(recalled.after_ms, signal)
      }
    }
  }

  #set(state: MutationState<Data, Variables>): void {
    this.#state = state
    for (const listener of [...this.#listeners]) listener()
  }
}

/** The variables as one text: which of them are the same intent. */
function textOf(variables: unknown): string {
  let text: string
  try {
    text = JSON.stringify(variables, plain) ?? 'null'
  } catch {
    // An event of the page, most likely: `onClick={order.mutate}`.
    return JSON.stringify(typeof variables)
  }
  try {
    return canonical(JSON.parse(text))
  } catch {
    return text
  }
}

/** What JSON has no word for, in words that tell it from another. */
function plain(_: string, value: unknown): unknown {
  if (typeof value === 'bigint') return `${value}n`
  if (typeof value !== 'object' || value === null) return value
  if (value instanceof Blob) return [value.type, value.size, ...(value instanceof File ? [value.name, value.lastModified] : [])]
  if (value instanceof FormData || value instanceof URLSearchParams || value instanceof Map || value instanceof Set) return [...value]
  if (value instanceof ArrayBuffer) return [...new Uint8Array(value)]
  if (ArrayBuffer.isView(value)) return [...new Uint8Array(value.buffer, value.byteOffset, value.byteLength)]
  return value
}

/** The key for this payload of an intent, kept from now on, also for transports that are not ours. */
async function reserve({ inner }: IdempotentFetch, intent: string, payload: string) {
  const { keys, options } = inner
  const digest = await digestOf(encode(payload))
  const id = await inner.id(intent, digest)
  // One from another source is made when there is a request to make it for.
  const key = (await keys.get(id))?.key ?? (options.keys ? undefined : newKey())
  if (key !== undefined && !(await keys.get(id))) await keys.put(id, { key, intent, digest, born: Date.now(), doubt: false })
  return { key, letGo: () => keys.remove(id) }
}

async function read(response: Response): Promise<unknown> {
  if (!response.ok) throw new Error(`the service answered ${response.status}`, { cause: response })
  return /[/+]json/.test(response.headers.get('content-type') ?? '') ? response.json() : response.text()
}

const asError = (error: unknown) => (error instanceof Error ? error : new Error(String(error)))

function noKey(): never {
  throw new Error('the key comes from `keys`, which is asked at the request: use `fetch` of the context')
}
