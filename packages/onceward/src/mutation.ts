/** A mutation that can be observed: the core of an adapter for a framework. */

import { contentOf } from './content.js'
import { isOffline, sleep } from './deadline.js'
import { idempotentFetch } from './default.js'
import { digest as digestOf, encode } from './digest.js'
import { internalsOf, type AdapterInit, type IdempotentFetch } from './idempotentFetch.js'
import { newKey } from './key.js'
import { lookupInternal } from './lookup.js'
import type { Progress } from './options.js'
import { WAIT_SECONDS } from './send.js'
import { entryOf, namedId, nameOf } from './storage.js'
import type { Executed } from './wire.js'

export interface MutationContext {
  /** `fetch` under the mutation's key. A second call in one mutation has a key of its own. */
  readonly fetch: (input: RequestInfo | URL, init?: RequestInit) => Promise<Response>
  /** Sends a value as JSON by POST, and returns the JSON of the response; throws if that is not `ok`. */
  readonly json: <T = any>(input: RequestInfo | URL, value: unknown, init?: RequestInit) => Promise<T>
  /** The key, for other transports: the same for each call with this intent, until its end. */
  readonly key: string
  /** Aborts at `reset`. */
  readonly signal: AbortSignal
}

/** Callbacks, as TanStack Query has them. */
export interface MutationCallbacks<Data, Variables> {
  readonly onSuccess?: ((data: Data, variables: Variables) => unknown) | undefined
  readonly onError?: ((error: Error, variables: Variables) => unknown) | undefined
  readonly onSettled?: ((data: Data | undefined, error: Error | null, variables: Variables) => unknown) | undefined
}

export interface MutationOptions<Data, Variables> extends MutationCallbacks<Data, Variables> {
  /**
   * Name of one action, such as `checkout:7`: one key from its first send until 24 hours after its end, in all tabs. Without
   * one, an equal request is the same action only while its outcome is open.
   */
  readonly intent?: string | undefined
  /** True if the name may be used again as soon as the end of its action was delivered. */
  readonly repeatable?: boolean | undefined
  readonly mutationFn: (variables: Variables, context: MutationContext) => Promise<Data>
  /** Makes the data of a response that an earlier page asked for. Default: JSON, else text; throws if it is not `ok`. */
  readonly restore?: ((response: Response) => Data | Promise<Data>) | undefined
  /** A fetch of `createIdempotentFetch`. Default: `idempotentFetch`. */
  readonly fetch?: IdempotentFetch | undefined
}

export type MutationState<Data, Variables> = Progress & (
  | { readonly status: 'idle'; readonly data: undefined; readonly error: null; readonly variables: undefined }
  | { readonly status: 'pending'; readonly data: undefined; readonly error: null; readonly variables: Variables | undefined }
  | { readonly status: 'success'; readonly data: Data; readonly error: null; readonly variables: Variables | undefined }
  | { readonly status: 'error'; readonly data: undefined; readonly error: Error; readonly variables: Variables | undefined }
  /** An earlier page sent it, and its response is not available: mutating the same asks for it under the same key. */
  | { readonly status: 'interrupted'; readonly data: undefined; readonly error: null; readonly variables: undefined; readonly executed: Executed }
)

const NO_PROGRESS: Progress = { attempts: 0, waitingFor: undefined, isPaused: false, failureReason: null }
const NOTHING = { data: undefined, error: null, variables: undefined } as const
const IDLE = { ...NO_PROGRESS, ...NOTHING, status: 'idle' } as const

interface Run<Data> {
  promise: Promise<Data>
  readonly stop: AbortController
  /** True if a caller awaits the data itself. */
  isAwaited: boolean
}

export class Mutation<Data, Variables> {
  #options: MutationOptions<Data, Variables>
  #state: MutationState<Data, Variables> = IDLE
  readonly #listeners = new Set<() => void>()
  /** Runs by content: equal calls while one runs are one. */
  readonly #running = new Map<string, Run<Data>>()
  /** Keys of unnamed mutations for other transports, by content. */
  readonly #keys = new Map<string, string>()
  /** The latest call or run, which the state follows. */
  #latest: object | undefined
  #lookup: AbortController | undefined

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

  /**
   * Finds out what became of an earlier page's or another tab's request, now, when another tab ends it, and when the page
   * comes back; sends nothing that takes effect. Returns how to stop.
   */
  resume(): () => void {
    const { intent, fetch = idempotentFetch } = this.#options
    if (intent === undefined) return () => undefined
    const start = () => {
      if (this.#latest) return
      this.#lookup?.abort()
      const stop = (this.#lookup = new AbortController())
      void this.#lookupOutcome(stop.signal).catch(() => undefined)
    }
    const onStorage = ({ key, newValue }: StorageEvent) => {
      if (key === nameOf(namedId(internalsOf(fetch).group(intent))) && entryOf(newValue)?.end) start()
    }
    const onShow = ({ persisted }: PageTransitionEvent) => persisted && start()
    globalThis.addEventListener?.('storage', onStorage)
    globalThis.addEventListener?.('pageshow', onShow)
    start()
    return () => {
      this.#lookup?.abort()
      globalThis.removeEventListener?.('storage', onStorage)
      globalThis.removeEventListener?.('pageshow', onShow)
    }
  }

  /** Sends, and returns the data. Equal calls while one runs are one intent: each gets its result. */
  readonly mutate = (variables: Variables, callbacks?: MutationCallbacks<Data, Variables>): Promise<Data> => this.#call(variables, callbacks, true)
  /** Sends; the outcome is in the state, and is delivered when an observer has it. */
  readonly dispatch = (variables: Variables, callbacks?: MutationCallbacks<Data, Variables>): void =>
    void this.#call(variables, callbacks, false).catch(() => undefined)

  /** Returns to idle. Running calls are aborted; their keys are kept. */
  readonly reset = (): void => {
    this.#lookup?.abort()
    for (const { stop } of this.#running.values()) stop.abort()
    this.#running.clear()
    this.#latest = undefined
    this.#set(IDLE)
  }

  #call(variables: Variables, callbacks: MutationCallbacks<Data, Variables> = {}, isAwaited: boolean): Promise<Data> {
    this.#lookup?.abort()
    const call = {}
    this.#latest = call
    const content = contentOf(variables)
    this.#set({ ...NO_PROGRESS, ...NOTHING, status: 'pending', variables })
    const join = (content: string): Promise<Data> => {
      let run = this.#running.get(content)
      if (!run) this.#running.set(content, (run = this.#start(variables, content)))
      run.isAwaited ||= isAwaited
      return run.promise
    }
    const promise = typeof content === 'string' ? join(content) : content.then(join)
    const settle = (data: Data | undefined, error: Error | null) => {
      // The state follows the latest call; a call that was reset has no state.
      if (this.#latest !== call) return
      this.#latest = undefined
      this.#set(error ? { ...NO_PROGRESS, status: 'error', data: undefined, error, variables } : { ...NO_PROGRESS, status: 'success', data: data as Data, error, variables })
      if (this.#listeners.size > 0) notify(callbacks, data, error, variables)
    }
    promise.then((data) => settle(data, null), (error: unknown) => settle(undefined, asError(error)))
    return promise
  }

  #start(variables: Variables, content: string): Run<Data> {
    const run: Run<Data> = { stop: new AbortController(), isAwaited: false, promise: undefined! }
    const options = this.#options
    run.promise = this.#run(variables, content, run)
    const end = (data: Data | undefined, error: Error | null) => {
      if (this.#running.get(content) !== run) return
      this.#running.delete(content)
      notify(options, data, error, variables)
    }
    run.promise.then((data) => end(data, null), (error: unknown) => end(undefined, asError(error)))
    return run
  }

  async #run(variables: Variables, content: string, run: Run<Data>): Promise<Data> {
    const { intent, repeatable, mutationFn, fetch = idempotentFetch } = this.#options
    const { signal } = run.stop
    const reserved = intent === undefined ? this.#unnamedKey(content) : await reserve(fetch, intent, content, repeatable)
    const settled: { readonly status: number; readonly release: () => Promise<unknown> }[] = []
    let calls = 0
    const send: MutationContext['fetch'] = async (input, init) => {
      calls += 1
      let release: (() => Promise<unknown>) | undefined
      const adapter: AdapterInit = {
        signal,
        ...init,
        ...(intent !== undefined && { intent: calls === 1 ? intent : `${intent}#${calls}`, payload: content, repeatable }),
        onSettled: (it) => void (release = it),
        onProgress: ({ attempts, isReached, cause, last }) => {
          if (this.#state.status !== 'pending') return
          const isPaused = isOffline()
          const failureReason = (cause as Error | undefined) ?? (last ? new Error(last.problem?.detail ?? `status ${last.response.status}`) : null)
          this.#set({ ...this.#state, attempts, isPaused, failureReason, waitingFor: isPaused ? 'network' : !isReached ? 'first-response' : cause ? 'network' : 'server' })
        },
      }
      let status = 0
      try {
        const response = await fetch(input, adapter)
        status = response.status
        return response
      } finally {
        if (release) settled.push({ status, release })
      }
    }
    const context: MutationContext = {
      signal,
      get key() {
        return reserved.key ?? noKey()
      },
      fetch: send,
      json: async <T>(input: RequestInfo | URL, value: unknown, init: RequestInit = {}) => {
        const headers = new Headers(init.headers)
        if (!headers.has('content-type')) headers.set('content-type', 'application/json')
        return (await readResponse(await send(input, { method: 'POST', ...init, headers, body: JSON.stringify(value) }))) as T
      },
    }
    /** Releases keys whose end is delivered: to an observer that is mounted, or to a caller that awaits it. */
    const deliver = (releases: (() => Promise<unknown>)[]) =>
      run.isAwaited || this.#listeners.size > 0 ? Promise.all(releases.map((release) => release())) : undefined
    try {
      const data = await mutationFn(variables, context)
      await deliver(calls === 0 ? [reserved.release] : settled.map(({ release }) => release))
      return data
    } catch (error) {
      // It was executed, and then something here failed: the next call gets the same response.
      await deliver(settled.filter(({ status }) => status === 0 || status >= 400).map(({ release }) => release))
      throw error
    }
  }

  #unnamedKey(content: string) {
    const keys = this.#keys
    return {
      get key(): string | undefined {
        const key = keys.get(content) ?? newKey()
        keys.set(content, key)
        return key
      },
      release: async () => void keys.delete(content),
    }
  }

  async #lookupOutcome(signal: AbortSignal): Promise<void> {
    const { intent, fetch = idempotentFetch, restore = readResponse } = this.#options
    // At once, so that the page can show that it is pending; from then on the server holds the question.
    for (let wait = 0; ; wait = internalsOf(fetch).options.wait ?? WAIT_SECONDS) {
      const found = await lookupInternal(fetch, intent!, { signal, wait })
      if (signal.aborted || this.#latest) return
      switch (found.state) {
        case 'none':
          return
        case 'answered':
          // The key is released where the end was shown: else the next page gets it, as when `mutationFn` fails.
          try {
            const data = (await restore(found.response)) as Data
            if (signal.aborted) return
            this.#set({ ...NO_PROGRESS, status: 'success', data, error: null, variables: undefined })
          } catch (error) {
            if (signal.aborted) return
            this.#set({ ...NO_PROGRESS, status: 'error', data: undefined, error: asError(error), variables: undefined })
            if (found.response.status < 400) return
          }
          return found.release()
        case 'interrupted':
          return this.#set({ ...NO_PROGRESS, ...NOTHING, status: 'interrupted', executed: found.executed })
        case 'in-flight':
          this.#set({ ...NO_PROGRESS, ...NOTHING, status: 'pending', waitingFor: 'server' })
          if (wait > 0) await sleep(found.afterMs, signal)
      }
    }
  }

  #set(state: MutationState<Data, Variables>): void {
    this.#state = state
    for (const listener of [...this.#listeners]) listener()
  }
}

function notify<Data, Variables>({ onSuccess, onError, onSettled }: MutationCallbacks<Data, Variables>, data: Data | undefined, error: Error | null, variables: Variables): void {
  if (error) onError?.(error, variables)
  else onSuccess?.(data as Data, variables)
  onSettled?.(data, error, variables)
}

/** Reserves the key of an intent, also for transports that are not ours. */
async function reserve(fetch: IdempotentFetch, intent: string, content: string, repeatable: boolean | undefined) {
  const { keys, options, group } = internalsOf(fetch)
  const digest = await digestOf(encode(content))
  const id = namedId(group(intent))
  const found = (await keys.get(id)) ?? (await keys.youngest(group(intent)))?.[1]
  // A key from another source is made when there is a request to make it for.
  const key = found?.key ?? (options.keys ? undefined : newKey())
  const entry = found ?? { key: key!, intent, digest, firstSentAt: Date.now(), maybeExecuted: false, repeatable }
  if (!found && key !== undefined) await keys.put(id, entry)
  return { key, release: () => keys.finish(id, entry) }
}

/** Reads JSON, else text; throws if the response is not `ok`. */
async function readResponse(response: Response): Promise<unknown> {
  const isJson = /[/+]json/.test(response.headers.get('content-type') ?? '')
  if (response.ok) return isJson && response.status !== 204 ? response.json() : response.text()
  const { detail = undefined, message = detail } = isJson ? ((await response.clone().json().catch(() => ({}))) as { detail?: unknown; message?: unknown }) : {}
  throw new Error(typeof message === 'string' ? message : `the service returned ${response.status}`, { cause: response })
}

const asError = (error: unknown) => (error instanceof Error ? error : new Error(String(error)))

function noKey(): never {
  throw new Error('the key comes from `keys`: use `fetch` of the context')
}
