export { createIdempotentFetch, type IdempotentFetch } from './idempotentFetch.js'
export { idempotentFetch } from './default.js'
export type { Attempt, IdempotentInit, KeySource, Options, Progress } from './options.js'
export { forget, lookup, lookup as recall, type LookupOptions } from './lookup.js'
export type { LookupResult, LookupResult as Recalled } from './status.js'
export { derivedKeys, issuedKeys } from './derived.js'
export { newKey, derivedKey, findVolatileFields } from './key.js'
export { canonical, CanonicalError } from './canonical.js'
export type { Decision, ErrorName, Failure, Observation, Reason } from './retry.js'
export { memoryStorage, webStorage, type KeyStorage } from './storage.js'
export {
  OncewardError, OutcomeUnknownError, InFlightError, KeyReusedError, PayloadChangedError, KeyExpiredError, AnswerNotKeptError,
  KeyRefusedError, NotSentError, isOncewardError, isOutcomeUnknownError, isInFlightError, isKeyReusedError,
  isPayloadChangedError, isKeyExpiredError, isAnswerNotKeptError, isKeyRefusedError, isNotSentError,
} from './errors.js'
export type { Executed, Outcome, Problem } from './wire.js'
export { Mutation, type MutationCallbacks, type MutationContext, type MutationOptions, type MutationState } from './mutation.js'
