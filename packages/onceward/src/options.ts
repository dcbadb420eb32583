import type { Decision, Heard } from './retry.js'
import type { Deadline } from './patience.js'
import type { Prepared } from './prepare.js'
import type { KeyStorage } from './storage.js'

/** What {@link createIdempotentFetch} binds. Everything has a default. */
export interface Options {
  /** Who is asking: keys of different users never meet, also in one browser. Not sent. Default: nobody. */
  readonly user?: string | (() => string)
  /** Where keys are kept while their outcome is open. Default: `session` in a page, else `memory`. */
  readonly storage?: 'memory' | 'session' | 'local' | KeyStorage
  /** Where keys come from. Default: a UUIDv7, once per intent; `derivedKeys()` and `issuedKeys()` are others. */
  readonly keys?: KeySource
  /** Says that the servers honour keys, so that nobody has to ask. Default: found out before the first resend. */
  readonly honoured?: boolean
  /** Where the servers have `policy`, `operation` and `keys`: a path of each origin, or a URL, without a slash at its end. Default: `/.idempotency`. */
  readonly endpoints?: string
  /** Within which all attempts end, in milliseconds, without the time offline. Default: 60 000. */
  readonly deadline?: number
  /** After which one attempt is given up and asked for again, in milliseconds, where keys are honoured. Default: 25 000. */
  readonly attemptTimeout?: number
  /** How long a server may hold a duplicate until the first one's answer is there, in seconds. Default: 10. */
  readonly wait?: number
  /**
   * The fetch beneath. Default: the global one, looked up at each call. It sees our own questions too, such as `GET
   * operation`: one that adds credentials to `request.headers` is the place for them.
   */
  readonly fetch?: (request: Request) => Promise<Response>
  /** Observes what was heard and decided, attempt by attempt. */
  readonly onAttempt?: (attempt: Attempt) => void
  /** Is told what a developer should mend. Default: `console.warn`. */
  readonly onWarning?: (message: string) => void
}

/** Makes the key of an intent, before its first send. */
export type KeySource = (wanted: {
  readonly prepared: Prepared
  readonly init: IdempotentInit
  readonly intent: string
  readonly user: string
  readonly options: Options
  readonly deadline: Deadline
  readonly signal: AbortSignal
}) => string | Promise<string>

/** `fetch`'s own, and what is of keys. */
export interface IdempotentInit extends RequestInit {
  /**
   * What the person means, such as `checkout:7`: the same for each retry of it, another for another order. Default: method,
   * URL and payload, for as long as the outcome is open. Requests of any method that name one bear a key; without one, POST
   * and PATCH do.
   */
  readonly intent?: string
  /** What the key is bound to, instead of the request's own bytes: the same intent and payload have the same key. */
  readonly payload?: string
  readonly deadline?: number
}

/** One step towards an answer. */
export interface Attempt {
  readonly intent: string
  readonly key: string
  /** How often the request itself was sent so far, this time included. */
  readonly sends: number
  /** Whether this was `GET operation`, and not the request itself. */
  readonly asked: boolean
  readonly heard: Heard
  readonly decision: Decision
}
