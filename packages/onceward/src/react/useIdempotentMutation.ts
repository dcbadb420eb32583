import { useCallback, useEffect, useState, useSyncExternalStore } from 'react'
import { Mutation, type MutationCallbacks, type MutationOptions, type MutationState } from '../index.js'

/** Adds TanStack Query's flags, each of which narrows the state. */
type Flagged<State> = State extends { readonly status: infer Status }
  ? State & {
      readonly isIdle: Status extends 'idle' ? true : false
      readonly isPending: Status extends 'pending' ? true : false
      readonly isSuccess: Status extends 'success' ? true : false
      readonly isError: Status extends 'error' ? true : false
      readonly isInterrupted: Status extends 'interrupted' ? true : false
    }
  : never

/** TanStack Query's result of a mutation, and `interrupted`. */
export type IdempotentMutation<Data, Variables> = Flagged<MutationState<Data, Variables>> & {
  /** Sends; the outcome is in `status`, `data` and `error`. Callbacks are called while the component is mounted. */
  readonly mutate: (variables: Variables, callbacks?: MutationCallbacks<Data, Variables>) => void
  readonly mutateAsync: (variables: Variables, callbacks?: MutationCallbacks<Data, Variables>) => Promise<Data>
  readonly reset: () => void
}

/**
 * Runs a mutation under one key per intent, over double clicks, refreshes and remounts. On mount it sends nothing that takes
 * effect: it looks up an earlier page's request of its name, and is `pending`, `success` or `interrupted` then.
 */
export function useIdempotentMutation<Data, Variables = void>(options: MutationOptions<Data, Variables>): IdempotentMutation<Data, Variables> {
  const { intent } = options
  // Another intent is another mutation: no state of the first may show in it.
  const [held, setHeld] = useState(() => ({ intent, mutation: new Mutation(options) }))
  let { mutation } = held
  if (held.intent !== intent) {
    mutation = new Mutation(options)
    setHeld({ intent, mutation })
  }
  useEffect(() => mutation.update(options))
  useEffect(() => mutation.resume(), [mutation])
  const state = useSyncExternalStore(mutation.subscribe, mutation.get, mutation.get)
  const mutate = useCallback((variables: Variables, callbacks?: MutationCallbacks<Data, Variables>) => mutation.dispatch(variables, callbacks), [mutation])
  const { status } = state
  return {
    ...state,
    mutate,
    mutateAsync: mutation.mutate,
    reset: mutation.reset,
    isIdle: status === 'idle',
    isPending: status === 'pending',
    isSuccess: status === 'success',
    isError: status === 'error',
    isInterrupted: status === 'interrupted',
  } as IdempotentMutation<Data, Variables>
}
