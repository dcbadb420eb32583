/** `onceward/react`: a thin adapter. */
export { useIdempotentMutation, type IdempotentMutation } from './useIdempotentMutation.js'
export type { MutationCallbacks, MutationContext, MutationOptions, MutationState, Progress } from '../index.js'
