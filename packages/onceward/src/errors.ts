/** Errors with literal names, each with a guard that also recognizes errors of another copy of this package. */

import type { LookupResult } from './status.js'
import type { ErrorName } from './retry.js'
import type { Executed, Problem } from './wire.js'

export interface ErrorDetails {
  /** Whether the operation was executed, as far as is known. */
  readonly executed: Executed
  readonly intent: string
  /** The server's refusal, if it gave a reason. */
  readonly problem?: Problem | undefined
  /** The last response, if there was one. */
  readonly response?: Response | undefined
  readonly cause?: unknown
}

/** Base of all errors of this package. */
export class OncewardError extends Error implements ErrorDetails {
  declare readonly executed: Executed
  declare readonly intent: string
  declare readonly problem: Problem | undefined
  declare readonly response: Response | undefined
  constructor(message: string, details: ErrorDetails) {
    super(message)
    Object.assign(this, details)
  }
}

/** It may have been executed or not. The key is kept: sending the same again is safe where keys are supported. */
export class OutcomeUnknownError extends OncewardError {
  override readonly name = 'OutcomeUnknownError' as const
}
/** It is still running, longer than the deadline. The key is kept: the same call later returns the response. */
export class InFlightError extends OncewardError {
  override readonly name = 'InFlightError' as const
}
/** The key was used with another request before. */
export class KeyReusedError extends OncewardError {
  override readonly name = 'KeyReusedError' as const
}
/**
 * The named intent was sent before with other content. `executed` and `first` are of the first send. The name keeps its
 * key: name another intent for another action, or `forget` this one.
 */
export class PayloadChangedError extends OncewardError {
  override readonly name = 'PayloadChangedError' as const
  /** What became of the first send. */
  declare readonly first: LookupResult
  /** Members of the content that look different at each send: times, random values, CSRF tokens. */
  declare readonly volatileFields: readonly string[]
}
/** It was executed longer ago than responses are kept, or before what the server remembers. */
export class KeyExpiredError extends OncewardError {
  override readonly name = 'KeyExpiredError' as const
}
/** It was executed, and its response was not kept. `problem.first_status` and `first_location` tell how it ended. */
export class AnswerNotKeptError extends OncewardError {
  override readonly name = 'AnswerNotKeptError' as const
}
/** The server rejects the key or the request. */
export class KeyRefusedError extends OncewardError {
  override readonly name = 'KeyRefusedError' as const
}
/** Nothing was sent: it was not executed. */
export class NotSentError extends OncewardError {
  override readonly name = 'NotSentError' as const
}

const ALL = {
  OutcomeUnknownError, InFlightError, KeyReusedError, PayloadChangedError, KeyExpiredError, AnswerNotKeptError, KeyRefusedError,
  NotSentError,
}

/** Makes an error. The server's own words, where there are some, say more than ours. */
export function errorOf(name: ErrorName, details: ErrorDetails, more = ''): OncewardError {
  const { executed, problem } = details
  return new ALL[name]((problem?.detail ?? `executed: ${executed}`) + more, details)
}

export const isOncewardError = (error: unknown): error is OncewardError =>
  error instanceof Error && (error.name in ALL || error.name === 'CanonicalError') && 'executed' in error
const hasName = (error: unknown, name: ErrorName) => isOncewardError(error) && error.name === name
export const isOutcomeUnknownError = (error: unknown): error is OutcomeUnknownError => hasName(error, 'OutcomeUnknownError')
export const isInFlightError = (error: unknown): error is InFlightError => hasName(error, 'InFlightError')
export const isKeyReusedError = (error: unknown): error is KeyReusedError => hasName(error, 'KeyReusedError')
export const isPayloadChangedError = (error: unknown): error is PayloadChangedError => hasName(error, 'PayloadChangedError')
export const isKeyExpiredError = (error: unknown): error is KeyExpiredError => hasName(error, 'KeyExpiredError')
export const isAnswerNotKeptError = (error: unknown): error is AnswerNotKeptError => hasName(error, 'AnswerNotKeptError')
export const isKeyRefusedError = (error: unknown): error is KeyRefusedError => hasName(error, 'KeyRefusedError')
export const isNotSentError = (error: unknown): error is NotSentError => hasName(error, 'NotSentError')
