/** The pages of the browser tests, as a front-end developer would write them. */

/** A shop counter with the hook. `?storage=` names where keys are kept. */
export const COUNTER = `
import { StrictMode } from 'react'
import { createRoot } from 'react-dom/client'
import { createIdempotentFetch } from 'onceward'
import { useIdempotentMutation } from 'onceward/react'

const storage = new URLSearchParams(location.search).get('storage') ?? 'session'
globalThis.attempts = []
const idempotentFetch = createIdempotentFetch({ storage, onAttempt: (attempt) => globalThis.attempts.push(attempt) })

function Counter() {
  const order = useIdempotentMutation({
    intent: 'checkout:7',
    fetch: idempotentFetch,
    mutationFn: (cart, { fetch }) =>
      fetch('/orders', { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(cart) }).then((r) => r.json()),
  })
  return <main>
    <button id="buy" onClick={() => order.mutate({ item: 'tea', qty: 2 })}>Buy</button>
    <p id="status">{order.status}</p>
    <output id="order">{order.data?.id}</output>
    <p id="error">{order.error?.name}</p>
  </main>
}
createRoot(document.getElementById('root')).render(<StrictMode><Counter /></StrictMode>)
`

/** The same counter as it is written without us: a fresh key for each attempt, and one more attempt after a failure. */
export const NAIVE = `
const root = document.getElementById('root')
root.innerHTML = '<button id="buy">Buy</button><p id="status">idle</p><output id="order"></output>'
const post = () => fetch('/orders', { method: 'POST', headers: { 'content-type': 'application/json', 'idempotency-key': crypto.randomUUID() },
  body: JSON.stringify({ item: 'tea', qty: 2 }) }).then((r) => r.json())
document.getElementById('buy').onclick = async () => {
  document.getElementById('status').textContent = 'pending'
  const order = await post().catch(post)
  document.getElementById('order').textContent = order.id
  document.getElementById('status').textContent = 'success'
}
`
