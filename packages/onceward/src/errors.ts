/** Errors with literal names, each with a guard that also knows those of another copy of this package. */

import type { ErrorName } from './retry.js'
import type { Executed, Problem } from './wire.js'

export interface Circumstances {
  /** Whether the operation was executed, as far as anybody knows. */
  readonly executed: Executed
  readonly intent: string
  /** The refusal, where the server said why. */
  readonly problem?: Problem | undefined
  /** The last response, where there was one. */
  readonly response?: Response | undefined
  readonly cause?: unknown
}

/** What all errors of this package are. */
export class OncewardError extends Error implements Circumstances {
  declare readonly executed: Executed
  declare readonly intent: string
  declare readonly problem: Problem | undefined
  declare readonly response: Response | undefined
  constructor(message: string, circumstances: Circumstances) {
    super(message)
    Object.assign(this, circumstances)
  }
}

/** It may have been executed or not. The key is kept: sending the same again later is safe where keys are honoured. */
export class OutcomeUnknownError extends OncewardError {
  override readonly name = 'OutcomeUnknownError' as const
}
/** It is still running, longer than the deadline. The key is kept: the same call later gets the answer. */
export class InFlightError extends OncewardError {
  override readonly name = 'InFlightError' as const
}
/** The key came with another request before. */
export class KeyReusedError extends OncewardError {
  override readonly name = 'KeyReusedError' as const
}
/** It was executed longer ago than answers are kept, or before what the server remembers. */
export class KeyExpiredError extends OncewardError {
  override readonly name = 'KeyExpiredError' as const
}
/** It was executed, and its answer was not kept. `problem.first_status` and `first_location` tell how it ended. */
export class AnswerNotKeptError extends OncewardError {
  override readonly name = 'AnswerNotKeptError' as const
}
/** The server does not take the key or the request. */
export class KeyRefusedError extends OncewardError {
  override readonly name = 'KeyRefusedError' as const
}
/** Nothing was sent, or nothing could be: it was not executed. */
export class NotSentError extends OncewardError {
  override readonly name = 'NotSentError' as const
}

const ALL = {
  OutcomeUnknownError, InFlightError, KeyReusedError, KeyExpiredError, AnswerNotKeptError, KeyRefusedError, NotSentError,
}

/** The server's own words, where there are some, say more than ours. */
export function errorOf(name: ErrorName, circumstances: Circumstances, more = ''): OncewardError {
  const { executed, problem } = circumstances
  return new ALL[name]((problem?.detail ?? `executed: ${executed}`) + more, circumstances)
}

export const isOncewardError = (error: unknown): error is OncewardError =>
  error instanceof Error && error.name in ALL && 'executed' in error
const named = (error: unknown, name: ErrorName) => isOncewardError(error) && error.name === name
export const isOutcomeUnknownError = (error: unknown): error is OutcomeUnknownError => named(error, 'OutcomeUnknownError')
export const isInFlightError = (error: unknown): error is InFlightError => named(error, 'InFlightError')
export const isKeyReusedError = (error: unknown): error is KeyReusedError => named(error, 'KeyReusedError')
export const isKeyExpiredError = (error: unknown): error is KeyExpiredError => named(error, 'KeyExpiredError')
export const isAnswerNotKeptError = (error: unknown): error is AnswerNotKeptError => named(error, 'AnswerNotKeptError')
export const isKeyRefusedError = (error: unknown): error is KeyRefusedError => named(error, 'KeyRefusedError')
export const isNotSentError = (error: unknown): error is NotSentError => named(error, 'NotSentError')
