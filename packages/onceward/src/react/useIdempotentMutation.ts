import { useCallback, useEffect, useState, useSyncExternalStore } from 'react'
import { Mutation, type MutationOptions, type MutationState } from '../index.js'

/** TanStack Query's result of a mutation, and `interrupted`. */
export type IdempotentMutation<Data, Variables> = MutationState<Data, Variables> & {
  /** Sends, and leaves what comes of it to `status`, `data` and `error`. */
  readonly mutate: (variables: Variables) => void
  readonly mutateAsync: (variables: Variables) => Promise<Data>
  readonly reset: () => void
  readonly isIdle: boolean
  readonly isPending: boolean
  readonly isSuccess: boolean
  readonly isError: boolean
  readonly isInterrupted: boolean
}

/**
 * A mutation under one key per intent, over double clicks, refreshes and remounts. On mount it sends nothing that takes
 * effect: it asks what became of an earlier page's request, and is `pending`, `success` or `interrupted` then.
 */
export function useIdempotentMutation<Data, Variables = void>(options: MutationOptions<Data, Variables>): IdempotentMutation<Data, Variables> {
  const { intent } = options
  // Another intent is another mutation: nothing of the first may show in it.
  const [held, setHeld] = useState(() => ({ intent, mutation: new Mutation(options) }))
  let { mutation } = held
  if (held.intent !== intent) {
    mutation = new Mutation(options)
    setHeld({ intent, mutation })
  }
  useEffect(() => mutation.update(options))
  useEffect(() => mutation.recall(), [mutation])
  const state = useSyncExternalStore(mutation.subscribe, mutation.get, mutation.get)
  const mutate = useCallback((variables: Variables) => void mutation.mutate(variables).catch(() => undefined), [mutation])
  return {
    ...state,
    mutate,
    mutateAsync: mutation.mutate,
    reset: mutation.reset,
    isIdle: state.status === 'idle',
    isPending: state.status === 'pending',
    isSuccess: state.status === 'success',
    isError: state.status === 'error',
    isInterrupted: state.status === 'interrupted',
  }
}
