/** Decides whether and when to send again: a pure function over one observation. `wire/cases.json` has its cases. */

import { outcomeOf, type Executed, type Outcome, type Problem } from './wire.js'

/** How a request ended without a whole response. `network`: it was sent, or perhaps sent. `unsent`: no byte was sent. */
export type Failure = 'network' | 'timeout' | 'unsent' | 'aborted'

/** What one attempt brought. */
export type Observation =
  | { readonly failure: Failure }
  | {
      readonly status: number
      /** The value of `Idempotency-Outcome`. */
      readonly outcome?: string | undefined
      /** `code`, `executed` and `retry` of the problem. */
      readonly code?: string | undefined
      readonly executed?: Executed | undefined
      readonly retry?: Problem['retry'] | undefined
      readonly retryAfterMs?: number | undefined
    }

/** What else is known when an observation is judged. */
export interface Context {
  /** True if the observation is the response to `GET operation`, not to the request itself. */
  readonly isStatusQuery: boolean
  /** Whether the origin supports keys; `undefined`: not known yet. */
  readonly supportsKeys: boolean | undefined
  /** True if an earlier send of the key may have been executed. */
  readonly maybeExecuted: boolean
  /** Rest of the total deadline, in milliseconds. */
  readonly remainingMs: number
}

export type Reason =
  | 'answer' | 'plain' | 'not-executed' | 'busy' | 'in-flight' | 'answer-lost' | 'unsent' | 'kept' | 'free' | 'unknown'
  | 'not-kept' | 'mismatch' | 'expired' | 'refused' | 'not-honoured' | 'not-known-to-be-honoured' | 'deadline' | 'aborted'

export type ErrorName =
  | 'AnswerNotKeptError' | 'InFlightError' | 'KeyExpiredError' | 'KeyRefusedError' | 'KeyReusedError' | 'NotSentError'
  | 'OutcomeUnknownError' | 'PayloadChangedError'

/** Milliseconds, or our own {@link backoff}. */
export type After = number | 'backoff'

export type Decision = {
  /** Only a definite outcome lets a key go. */
  readonly key: 'keep' | 'drop'
  /** State of the key's operation over all attempts. Unless it is `no`, the operation may have been executed. */
  readonly executed: Executed
  readonly reason: Reason
} & (
  | { readonly action: 'return' | 'check' }
  | { readonly action: 'resend' | 'ask'; readonly after: After }
  | { readonly action: 'throw'; readonly error: ErrorName | 'AbortError' }
)

/** Returned by a proxy or a service that may have executed the request. */
const isLost = (status: number) => /^(408|50[234]|52[0-7]|530|59[89])$/.test(`${status}`)
/** Returned by one that did not. */
const isBusy = (status: number) => /^(4(25|29)|529)$/.test(`${status}`)
/** Statuses that the caller can fix or wait out with the same intent, so the key is kept. */
const isKept = (status: number) => /^(4(01|03|07|1[01279]|2[12368]|31|40|49|98)|5(09|11|61))$/.test(`${status}`)
/** The outcomes of codes, for pages of other origins that can read the body and not the header. */
const BY_CODE: Record<string, Outcome> = {
  in_flight: 'in-flight', upstream_timeout: 'in-flight', outcome_unknown: 'unknown', upstream_lost: 'unknown',
  answer_not_kept: 'not-stored', key_expired: 'expired', key_reused: 'mismatch',
}

/** Returns what to do after an observation. */
export function decide(context: Context, observation: Observation): Decision {
  const { isStatusQuery, maybeExecuted, remainingMs } = context
  const give = (executed: Executed, reason: Reason, key: 'keep' | 'drop' = 'keep'): Decision => ({ action: 'return', key, executed, reason })
  const fail = (error: ErrorName | 'AbortError', executed: Executed, reason: Reason, key: 'keep' | 'drop' = 'keep'): Decision =>
    ({ action: 'throw', error, key, executed, reason })
  const giveUp = (executed: Executed, reason: Reason): Decision => {
    if (reason === 'deadline' && inFlight) return fail('InFlightError', executed, reason)
    if (executed !== 'no') return fail('OutcomeUnknownError', executed, reason)
    return 'failure' in observation ? fail('NotSentError', executed, reason) : give(executed, reason)
  }
  let inFlight = false
  let supportsKeys = context.supportsKeys

  /** Once more with the same key, if that is safe and there is time. */
  const again = (executed: Executed, reason: Reason, how: 'resend' | 'ask' = isStatusQuery ? 'ask' : 'resend', at?: number): Decision => {
    const wait = at ?? (('failure' in observation ? 0 : observation.retryAfterMs) || 'backoff')
    if (remainingMs <= (wait === 'backoff' ? 0 : wait)) return giveUp(executed, 'deadline')
    // A request that may have been executed is sent again only to an origin that supports keys.
    const isFirst = reason === 'unsent' && !maybeExecuted
    if (!supportsKeys && !isFirst && !isStatusQuery) {
      if (supportsKeys === undefined) return { action: 'check', key: 'keep', executed, reason: 'not-known-to-be-honoured' }
      return giveUp(executed, 'not-honoured')
    }
    return { action: how, after: wait, key: 'keep', executed, reason }
  }
  const before: Executed = maybeExecuted ? 'unknown' : 'no'

  if ('failure' in observation) {
    switch (observation.failure) {
      case 'aborted': return fail('AbortError', 'unknown', 'aborted')
      case 'unsent': return again(before, 'unsent')
      default: return again('unknown', 'answer-lost')
    }
  }

  const { status, code, retry } = observation
  const outcome = outcomeOf(observation.outcome) ?? (retry && (BY_CODE[code!] ?? 'rejected'))
  if (outcome) supportsKeys = true
  switch (outcome) {
    case 'stored':
      // An anonymous caller learns that a response is stored, not the response itself: sending again returns it.
      if (isStatusQuery) return again('yes', 'kept', 'resend', 0)
    // falls through
    case 'replayed':
    case 'reconciled':
      return give('yes', 'answer', 'drop')
    case 'not-stored':
      if (code === 'answer_not_kept' || isStatusQuery) return fail('AnswerNotKeptError', 'yes', 'not-kept', 'drop')
      if (isLost(status) || retry === 'same-key') return again('unknown', 'answer-lost')
      return give('yes', 'answer', 'drop')
    case 'released':
      // Never seen here, or released: what was sent earlier may still arrive, so `executed` stays open.
      if (isStatusQuery) return again('unknown', 'free', 'resend', 0)
      if (isBusy(status) || status === 503 || observation.retryAfterMs != null || retry === 'same-key') return again('no', 'busy')
      return give('no', 'not-executed')
    case 'in-flight':
      inFlight = true
      return again('unknown', 'in-flight')
    case 'unknown':
      if (isStatusQuery && retry !== 'wait') return fail('OutcomeUnknownError', 'unknown', 'unknown')
      if (retry === 'same-key' || (!code && isLost(status))) return again('unknown', 'answer-lost')
      return again('unknown', 'unknown', 'ask', retry === 'wait' ? undefined : 0)
    case 'mismatch':
      return fail('KeyReusedError', 'unknown', 'mismatch')
    case 'expired': {
      const executed = observation.executed ?? 'unknown'
      return fail('KeyExpiredError', executed, 'expired', executed === 'yes' ? 'drop' : 'keep')
    }
    case 'rejected': {
      // Refused before it could execute; but a record that cannot be read may be one of an earlier execution.
      const executed = observation.executed === 'unknown' && status !== 500 ? before : (observation.executed ?? 'unknown')
      if (retry === 'same-key' || retry === 'wait') return again(executed, 'busy')
      return fail('KeyRefusedError', executed, 'refused', retry === 'new-key' ? 'drop' : 'keep')
    }
  }

  // The responder does not know keys: a service without them, or a proxy on the way.
  if (isBusy(status)) return again(before, 'busy')
  if (isLost(status)) return again('unknown', 'answer-lost')
  if (isStatusQuery) return fail('OutcomeUnknownError', 'unknown', 'unknown')
  if (status < 400) return give('yes', 'plain', 'drop')
  if ((status >= 500 && !isKept(status)) || status === 409) return give('unknown', 'plain')
  return give(before, 'plain', maybeExecuted || isKept(status) ? 'keep' : 'drop')
}

const BACKOFF_FIRST_MS = 500
const BACKOFF_MS_MAX = 15_000

/** Returns the backoff after N sends, in milliseconds, for a random number of [0, 1). */
export function backoff(sends: number, random: number): number {
  const most = Math.min(BACKOFF_MS_MAX, BACKOFF_FIRST_MS * 2 ** (sends - 1))
  return Math.floor(most / 2 + (most / 2) * random)
}
