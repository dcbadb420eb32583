/** `onceward/react`: a thin adapter. */
export { useIdempotentMutation, type IdempotentMutation } from './useIdempotentMutation.js'
export type { MutationContext, MutationOptions, MutationState } from '../index.js'
