/** Beside TanStack Query: its queries show the orders, its cache is refreshed; the order itself is sent once by the fetch. */
import { QueryClient, QueryClientProvider, useMutation, useQuery, useQueryClient } from '@tanstack/react-query'
import { idempotentFetch } from 'onceward'

interface Cart { id: string; item: string; qty: number }
interface Order { id: number; item: string; qty: number }

export function Orders({ cart }: { cart: Cart }) {
  const client = useQueryClient()
  const orders = useQuery({ queryKey: ['orders'], queryFn: () => idempotentFetch('/orders').then((response) => response.json() as Promise<Order[]>) })
  const order = useMutation({
    // The key is over all attempts, so TanStack's own retries, if you turn them on, are the same order too.
    mutationFn: ({ id, item, qty }: Cart) =>
      idempotentFetch('/orders', {
        method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify({ item, qty }), intent: `checkout:${id}`,
      }).then((response) => response.json() as Promise<Order>),
    onSuccess: () => client.invalidateQueries({ queryKey: ['orders'] }),
  })
  return (
    <section>
      <button id="buy" disabled={order.isPending} onClick={() => order.mutate(cart)}>Buy</button>
      <p id="status">{order.status}</p>
      <output id="order">{order.data?.id}</output>
      <ul>{orders.data?.map(({ id, item, qty }) => <li key={id}>{qty} × {item}</li>)}</ul>
    </section>
  )
}

export function Shop({ cart }: { cart: Cart }) {
  return <QueryClientProvider client={new QueryClient()}><Orders cart={cart} /></QueryClientProvider>
}
