export { createIdempotentFetch, type IdempotentFetch } from './idempotentFetch.js'
export { idempotentFetch } from './default.js'
export type { Attempt, IdempotentInit, KeySource, Options } from './options.js'
export { forget, recall, type Recalled } from './recall.js'
export { derivedKeys, issuedKeys } from './derived.js'
export { newKey, derivedKey, suspects } from './key.js'
export { canonical, CanonicalError } from './canonical.js'
export { decide, backoff, type Decision, type ErrorName, type Failure, type Given, type Heard, type Reason } from './retry.js'
export { retryAfter } from './retryAfter.js'
export { memoryStorage, webStorage, type KeyStorage } from './storage.js'
export {
  OncewardError, OutcomeUnknownError, InFlightError, KeyReusedError, KeyExpiredError, AnswerNotKeptError, KeyRefusedError,
  NotSentError, isOncewardError, isOutcomeUnknownError, isInFlightError, isKeyReusedError, isKeyExpiredError,
  isAnswerNotKeptError, isKeyRefusedError, isNotSentError,
} from './errors.js'
export type { Executed, Outcome, Problem } from './wire.js'
export { Mutation, type MutationContext, type MutationOptions, type MutationState } from './mutation.js'
