/** With a form action of React 19: one name, one order. */
import { useActionState } from 'react'
import { useIdempotentMutation } from 'onceward/react'

interface Order { id: number; item: string; qty: number }

export function OrderForm({ cart }: { cart: string }) {
  const order = useIdempotentMutation({
    intent: `checkout:${cart}`,
    mutationFn: (form: FormData, { json }) => json<Order>('/orders', { item: form.get('item'), qty: Number(form.get('qty')) }),
  })
  const [failure, action, isPending] = useActionState(async (_: string | undefined, form: FormData) => {
    try {
      await order.mutateAsync(form)
      return undefined
    } catch (error) {
      return (error as Error).message
    }
  }, undefined)
  return (
    <form action={action}>
      <input name="item" defaultValue="tea" aria-label="item" />
      <input name="qty" type="number" defaultValue={1} aria-label="how many" />
      <button id="buy" disabled={isPending}>Order</button>
      <p id="status">{order.status}</p>
      <output id="order">{order.data?.id}</output>
      {failure && <p role="alert">{failure}</p>}
    </form>
  )
}
