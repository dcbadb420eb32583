/** May we, and when? A pure function over what was heard, with its reasons; `wire/cases.json` has its cases. */

import { outcomeOf, type Executed, type Outcome, type Problem } from './wire.js'

/** How a request ended without a whole response. `network`: it was sent, or perhaps sent. `unsent`: no byte of it was. */
export type Failure = 'network' | 'timeout' | 'unsent' | 'aborted'

export type Heard =
  | { readonly failure: Failure }
  | {
      readonly status: number
      /** The value of `Idempotency-Outcome`. */
      readonly outcome?: string | undefined
      /** `code`, `executed` and `retry` of the problem. */
      readonly code?: string | undefined
      readonly executed?: Executed | undefined
      readonly retry?: Problem['retry'] | undefined
      readonly retry_after_ms?: number | undefined
    }

export interface Given {
  /** Whether this answers `GET operation` and not the request itself. */
  readonly asked: boolean
  /** Whether keys are honoured at the origin; `undefined`: not known yet. */
  readonly honoured: boolean | undefined
  /** Whether an earlier send of the key may have been executed. */
  readonly doubt: boolean
  /** What is left of the total deadline, in milliseconds. */
  readonly left_ms: number
}

export type Reason =
  | 'answer' | 'plain' | 'not-executed' | 'busy' | 'in-flight' | 'answer-lost' | 'unsent' | 'kept' | 'free' | 'unknown'
  | 'not-kept' | 'mismatch' | 'expired' | 'refused' | 'not-honoured' | 'not-known-to-be-honoured' | 'deadline' | 'aborted'

export type ErrorName =
  | 'AnswerNotKeptError' | 'InFlightError' | 'KeyExpiredError' | 'KeyRefusedError' | 'KeyReusedError' | 'NotSentError'
  | 'OutcomeUnknownError'

/** Milliseconds, or our own {@link backoff}. */
export type After = number | 'backoff'

export type Decision = {
  /** Only a definite outcome lets a key go. */
  readonly key: 'keep' | 'drop'
  /** What is known of the key's operation over all attempts; unless it is `no`, there is a doubt from now on. */
  readonly executed: Executed
  readonly because: Reason
} & (
  | { readonly do: 'return' | 'check' }
  | { readonly do: 'resend' | 'ask'; readonly after: After }
  | { readonly do: 'throw'; readonly error: ErrorName | 'AbortError' }
)

/** Said by a proxy, or a service, that may have executed the request; and by one that did not. */
const isLost = (status: number) => /^(408|50[234]|52[0-7]|530|59[89])$/.test(`${status}`)
const isBusy = (status: number) => status === 425 || status === 429 || status === 529
/** What may be mended, waited for or signed in to without a new intent, so that the same key goes on. */
const isKept = (status: number) => /^(4(01|03|07|1[01279]|2[12368]|31|40|49|98)|5(09|11|61))$/.test(`${status}`)
/** The outcomes of codes, for pages of other origins that can read the body and not the header. */
const BY_CODE: Record<string, Outcome> = {
  in_flight: 'in-flight', upstream_timeout: 'in-flight', outcome_unknown: 'unknown', upstream_lost: 'unknown',
  answer_not_kept: 'not-stored', key_expired: 'expired', key_reused: 'mismatch',
}

/** What to do after what was heard. */
export function decide(given: Given, heard: Heard): Decision {
  const { asked, doubt, left_ms } = given
  const hand = (executed: Executed, because: Reason, key: 'keep' | 'drop' = 'keep'): Decision => ({ do: 'return', key, executed, because })
  const fail = (error: ErrorName | 'AbortError', executed: Executed, because: Reason, key: 'keep' | 'drop' = 'keep'): Decision =>
    ({ do: 'throw', error, key, executed, because })
  const giveUp = (executed: Executed, because: Reason): Decision => {
    if (because === 'deadline' && inFlight) return fail('InFlightError', executed, because)
    if (executed !== 'no') return fail('OutcomeUnknownError', executed, because)
    return 'failure' in heard ? fail('NotSentError', executed, because) : hand(executed, because)
  }
  let inFlight = false
  let honoured = given.honoured

  /** Once more with the same key, if that is safe and there is time. */
  const again = (executed: Executed, because: Reason, how: 'resend' | 'ask' = asked ? 'ask' : 'resend', at?: number): Decision => {
    const wait = at ?? (('failure' in heard ? 0 : heard.retry_after_ms) || 'backoff')
    if (left_ms <= (wait === 'backoff' ? 0 : wait)) return giveUp(executed, 'deadline')
    // Never the duplicate itself: a request that perhaps was executed is sent again only to where keys are honoured.
    const isFirst = because === 'unsent' && !doubt
    if (!honoured && !isFirst && !asked) {
      if (honoured === undefined) return { do: 'check', key: 'keep', executed, because: 'not-known-to-be-honoured' }
      return giveUp(executed, 'not-honoured')
    }
    return { do: how, after: wait, key: 'keep', executed, because }
  }
  const before: Executed = doubt ? 'unknown' : 'no'

  if ('failure' in heard) {
    switch (heard.failure) {
      case 'aborted': return fail('AbortError', 'unknown', 'aborted')
      case 'unsent': return again(before, 'unsent')
      default: return again('unknown', 'answer-lost')
    }
  }

  const { status, code, retry } = heard
  const outcome = outcomeOf(heard.outcome) ?? (retry && (BY_CODE[code!] ?? 'rejected'))
  if (outcome) honoured = true
  switch (outcome) {
    case 'stored':
      // Whoever has no name is told that it is kept, and not the answer itself: sending again brings that.
      if (asked) return again('yes', 'kept', 'resend', 0)
    // falls through
    case 'replayed':
    case 'reconciled':
      return hand('yes', 'answer', 'drop')
    case 'not-stored':
      if (code === 'answer_not_kept' || asked) return fail('AnswerNotKeptError', 'yes', 'not-kept', 'drop')
      if (isLost(status) || retry === 'same-key') return again('unknown', 'answer-lost')
      return hand('yes', 'answer', 'drop')
    case 'released':
      // Never seen here, or released: what was sent earlier may yet arrive, so `executed` stays open.
      if (asked) return again('unknown', 'free', 'resend', 0)
      if (isBusy(status) || status === 503 || heard.retry_after_ms !== undefined || retry === 'same-key') return again('no', 'busy')
      return hand('no', 'not-executed')
    case 'in-flight':
      inFlight = true
      return again('unknown', 'in-flight')
    case 'unknown':
      if (asked && retry !== 'wait') return fail('OutcomeUnknownError', 'unknown', 'unknown')
      if (retry === 'same-key' || (!code && isLost(status))) return again('unknown', 'answer-lost')
      return again('unknown', 'unknown', 'ask', retry === 'wait' ? undefined : 0)
    case 'mismatch':
      return fail('KeyReusedError', 'unknown', 'mismatch')
    case 'expired': {
      const executed = heard.executed ?? 'unknown'
      return fail('KeyExpiredError', executed, 'expired', executed === 'yes' ? 'drop' : 'keep')
    }
    case 'rejected': {
      // Refused before it could execute; but a record that cannot be read may be one of an earlier execution.
      const executed = heard.executed === 'unknown' && status !== 500 ? before : (heard.executed ?? 'unknown')
      if (retry === 'same-key' || retry === 'wait') return again(executed, 'busy')
      return fail('KeyRefusedError', executed, 'refused', retry === 'new-key' ? 'drop' : 'keep')
    }
  }

  // Nobody who knows of keys spoke: a service without them, or a proxy on the way.
  if (isBusy(status)) return again(before, 'busy')
  if (isLost(status)) return again('unknown', 'answer-lost')
  if (asked) return fail('OutcomeUnknownError', 'unknown', 'unknown')
  if (status < 400) return hand('yes', 'plain', 'drop')
  if ((status >= 500 && !isKept(status)) || status === 409) return hand('unknown', 'plain')
  return hand(before, 'plain', doubt || isKept(status) ? 'keep' : 'drop')
}

const BACKOFF_FIRST_MS = 500
const BACKOFF_MS_MAX = 15_000

/** Our own backoff after so many sends, in milliseconds, given a random number of [0, 1). */
export function backoff(sends: number, random: number): number {
  const most = Math.min(BACKOFF_MS_MAX, BACKOFF_FIRST_MS * 2 ** (sends - 1))
  return Math.floor(most / 2 + (most / 2) * random)
}
