import type { Decision, Observation } from './retry.js'
import type { Deadline } from './deadline.js'
import type { PreparedRequest } from './prepare.js'
import type { KeyStorage } from './storage.js'

/** Settings of {@link createIdempotentFetch}. Everything has a default. */
export interface Options {
  /** The user: keys of different users never meet, also in one browser. Not sent. Default: none. */
  readonly user?: string | (() => string)
  /**
   * Storage of keys while their outcome is open. Default: `session` in a page, else `memory`. Named intents are known in all
   * tabs: with `session`, they are in `localStorage`.
   */
  readonly storage?: 'memory' | 'session' | 'local' | KeyStorage
  /** Source of keys. Default: a UUIDv7 per intent; `derivedKeys()` and `issuedKeys()` are others. */
  readonly keys?: KeySource
  /** States that the servers support keys, so that they need not be asked. Default: found out before the first resend. */
  readonly honoured?: boolean
  /** Base of `policy`, `operation` and `keys`: a path of each origin, or a URL, without a slash at its end. Default: `/.idempotency`. */
  readonly endpoints?: string
  /**
   * Total deadline of all attempts, in milliseconds, without the time offline. Default: 60 000; 20 000 for retries while the
   * origin never responded.
   */
  readonly deadline?: number
  /** Timeout of one attempt, in milliseconds, where keys are supported. Default: 25 000. */
  readonly attemptTimeout?: number
  /** How long a server may hold a duplicate until the first response is available, in seconds. Default: 10. */
  readonly wait?: number
  /**
   * Headers of every request, ours included, such as `GET operation`: the place for a bearer token. A header that the
   * request has already is kept.
   */
  readonly headers?: HeadersInit | ((request: Request) => HeadersInit | Promise<HeadersInit>)
  /** The underlying fetch. Default: the global one, looked up at each call. It sends our own requests too. */
  readonly fetch?: (request: Request) => Promise<Response>
  /** Observes each attempt and the decision after it. */
  readonly onAttempt?: (attempt: Attempt) => void
  /** Receives what a developer should fix. Default: `console.warn`. */
  readonly onWarning?: (message: string) => void
}

/** Makes the key of an intent, before its first send. */
export type KeySource = (wanted: {
  readonly prepared: PreparedRequest
  readonly init: IdempotentInit
  readonly intent: string
  readonly user: string
  readonly options: Options
  readonly deadline: Deadline
  readonly signal: AbortSignal
}) => string | Promise<string>

/** `fetch`'s own options, and those of keys. */
export interface IdempotentInit extends RequestInit {
  /**
   * Name of one action, such as `checkout:7`: one key, whatever the content, from its first send until 24 hours after its end.
   * Default: method, URL and content, for as long as the outcome is open. Requests of any method that name one have a key;
   * without one, POST and PATCH do.
   */
  readonly intent?: string | undefined
  /** True if the name may be used again as soon as the end of its action was delivered. */
  readonly repeatable?: boolean | undefined
  /** Content to compare instead of the request's own bytes, where these differ at each send. */
  readonly payload?: string | undefined
  readonly deadline?: number | undefined
}

/** Progress of a request that has no response yet. */
export interface Progress {
  /** Number of times that the request itself was sent. */
  readonly attempts: number
  /** `first-response`: its origin never responded; `network`: the network failed; `server`: its response is awaited. */
  readonly waitingFor: 'network' | 'server' | 'first-response' | undefined
  /** True while the browser is offline. */
  readonly isPaused: boolean
  /** Why the last attempt failed. */
  readonly failureReason: Error | null
}

/** One step towards a response. */
export interface Attempt {
  readonly intent: string
  readonly key: string
  /** Number of times that the request itself was sent, this time included. */
  readonly sends: number
  /** True if this was `GET operation`, not the request itself. */
  readonly isStatusQuery: boolean
  readonly observation: Observation
  readonly decision: Decision
}
