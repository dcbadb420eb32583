/**
 * Beside TanStack Query: its queries show the orders, its cache is refreshed; the order itself is sent once by the fetch. With a
 * persister, make the fetch by `createIdempotentFetch({ storage: 'local' })`: it restores mutations after the browser was closed.
 */
import { QueryClient, QueryClientProvider, useMutation, useQuery, useQueryClient } from '@tanstack/react-query'
import { idempotentFetch } from 'onceward'

interface Cart { id: string; item: string; qty: number }
interface Order { id: number; item: string; qty: number }

async function read<T>(response: Response): Promise<T> {
  if (!response.ok) throw new Error(`the service returned ${response.status}`)
  return response.json() as Promise<T>
}

export function Orders({ cart }: { cart: Cart }) {
  const client = useQueryClient()
  const orders = useQuery({ queryKey: ['orders'], queryFn: () => idempotentFetch('/orders').then((response) => read<Order[]>(response)) })
  const order = useMutation({
    // The key is over all attempts, so TanStack's own retries, if you turn them on, are the same order too.
    mutationFn: ({ id, item, qty }: Cart) =>
      idempotentFetch('/orders', {
        method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify({ item, qty }), intent: `checkout:${id}`,
      }).then((response) => read<Order>(response)),
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
