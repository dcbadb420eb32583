/** Read by `tsc`; run as well, so that it is counted. */
import { expectTypeOf, test } from 'vitest'
import {
  createIdempotentFetch, idempotentFetch, isInFlightError, type Decision, type IdempotentFetch, type InFlightError, type KeyStorage, type LookupResult,
} from 'onceward'
import { indexedDBStorage } from 'onceward/indexeddb'
import { handleSubmit, submitOnce } from 'onceward/forms'
import { useIdempotentMutation, type IdempotentMutation } from 'onceward/react'

test('it is a fetch', () => {
  expectTypeOf(idempotentFetch).toExtend<typeof fetch>()
  expectTypeOf(createIdempotentFetch).returns.toEqualTypeOf<IdempotentFetch>()
  // @ts-expect-error an intent is a text
  void (() => idempotentFetch('/orders', { intent: 7 }))
  // @ts-expect-error no such place
  void (() => createIdempotentFetch({ storage: 'cookie' }))
})

test('a decision says what comes after it, and a guard narrows', () => {
  const narrow = (decision: Decision, error: unknown) => {
    if (decision.action === 'resend') expectTypeOf(decision.after).toEqualTypeOf<number | 'backoff'>()
    // @ts-expect-error what is returned is not delayed
    if (decision.action === 'return') void decision.after
    if (isInFlightError(error)) {
      expectTypeOf(error).toEqualTypeOf<InFlightError>()
      expectTypeOf(error.name).toEqualTypeOf<'InFlightError'>()
      expectTypeOf(error.executed).toEqualTypeOf<'yes' | 'no' | 'unknown'>()
    }
  }
  expectTypeOf(narrow).returns.toBeVoid()
})

test('the hook infers data and variables, and its status narrows', () => {
  const use = () =>
    useIdempotentMutation({
      intent: 'checkout:7',
      mutationFn: async (cart: { item: string }, { fetch, key, signal }) => {
        expectTypeOf(key).toBeString()
        expectTypeOf(signal).toEqualTypeOf<AbortSignal>()
        return (await fetch('/orders', { body: cart.item })).status
      },
    })
  expectTypeOf(use).returns.toEqualTypeOf<IdempotentMutation<number, { item: string }>>()
  const read = (order: IdempotentMutation<number, { item: string }>) => {
    if (order.status === 'success') expectTypeOf(order.data).toBeNumber()
    if (order.status === 'error') expectTypeOf(order.error).toEqualTypeOf<Error>()
    if (order.status === 'interrupted') expectTypeOf(order.executed).toEqualTypeOf<'yes' | 'no' | 'unknown'>()
    // @ts-expect-error another cart
    order.mutate({ name: 'tea' })
  }
  expectTypeOf(read).returns.toBeVoid()
})

test('the subpaths have their types', () => {
  expectTypeOf(indexedDBStorage).returns.toEqualTypeOf<KeyStorage>()
  expectTypeOf(submitOnce).returns.resolves.toEqualTypeOf<Response>()
  expectTypeOf(handleSubmit).returns.returns.toBeVoid()
  expectTypeOf<LookupResult['state']>().toEqualTypeOf<'none' | 'in-flight' | 'answered' | 'interrupted'>()
})
