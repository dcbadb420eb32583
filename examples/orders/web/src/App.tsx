import { createIdempotentFetch } from 'onceward'
import { useIdempotentMutation } from 'onceward/react'
import { useEffect, useRef } from 'react'
import { cart as kept, change, wanted, type Cart } from './cart.js'
import { Counter } from './Counter.js'
import { useNaive } from './naive.js'
import { useOrders, type Order } from './orders.js'
import { Requests } from './Requests.js'
import { Side } from './Side.js'
import { send } from './traffic.js'
import { arm, switches } from './troubles.js'

const once = createIdempotentFetch({ fetch: (request) => send('onceward', request) })

/** Delay after which a reloaded page, or a second tab, presses again. */
const IMPATIENCE_MS = 600
const AGAIN = 'counter.again'

export function App() {
  const cart = kept.use()
  const { rows, network, isOld } = useOrders()
  const naive = useNaive(cart)
  // All that it takes: a name per order, and the `json` or `fetch` that is given.
  const order = useIdempotentMutation({
    intent: `checkout:${cart.ticket}`,
    fetch: once,
    mutationFn: (body: ReturnType<typeof wanted>, { json }) => json<Order>('/orders', body),
  })

  const placed = order.data?.id
  useEffect(() => {
    if (placed !== undefined && kept.get().placed !== placed) change({ placed })
  }, [placed])

  // The button, as each client would have it under its own.
  const press = () => {
    const now = kept.get()
    naive.order(now)
    // Its answer is here, be it from before a refresh: there is nothing left to press for.
    if (now.placed === undefined) order.mutate(wanted(now, 'onceward'))
  }
  const pressed = () => {
    const on = switches.get()
    arm(cart.ticket)
    change({ pressed: true })
    press()
    if (on.includes('double')) press()
    if (on.includes('tab')) window.open(`${location.pathname}#again`)
    if (on.includes('refresh')) {
      setTimeout(() => {
        sessionStorage.setItem(AGAIN, cart.ticket)
        location.reload()
      }, IMPATIENCE_MS)
    }
  }
  useAgain(cart, press)

  const mine = rows.filter((row) => row.ticket === cart.ticket)
  const [ours, theirs] = (['onceward', 'naive'] as const).map((client) => mine.filter((row) => row.client === client)) as [typeof mine, typeof mine]
  return (
    <main>
      <header>
        <p className="brand"><span aria-hidden="true">1</span> Onceward</p>
        <h1>One click, one order.</h1>
        <p>Each press orders twice at the same moment: with a client that keeps one key per intent, and with a naive one. Let something go wrong, and count.</p>
      </header>
      <div className="stage">
        <Counter cart={cart} order={order} naiveKnows={naive.isPending || naive.said !== ''} network={network} isOld={isOld} onPress={pressed} />
        <section className="sides" aria-label="What became of it">
          <Side client="onceward" title="With Onceward" rows={ours} all={rows} status={order.status} said={saidOf(order, cart)} />
          <Side client="naive" title="The naive client" rows={theirs} all={rows} status={naive.isPending ? 'pending' : naive.said ? 'success' : 'idle'} said={naive.said} />
        </section>
      </div>
      <Requests />
    </main>
  )
}

/** Presses once more, where the page before this one was left in the middle, or this one is its copy. */
function useAgain(cart: Cart, press: () => void): void {
  const latest = useRef(press)
  useEffect(() => {
    latest.current = press
  })
  useEffect(() => {
    const isCopy = location.hash === '#again'
    if (!isCopy && sessionStorage.getItem(AGAIN) !== cart.ticket) return
    const timer = setTimeout(() => {
      sessionStorage.removeItem(AGAIN)
      history.replaceState(null, '', location.pathname)
      latest.current()
    }, IMPATIENCE_MS)
    return () => clearTimeout(timer)
  }, [cart.ticket])
}

function saidOf({ status, data, error }: { status: string; data: Order | undefined; error: Error | null }, { placed }: Cart): string {
  const id = data?.id ?? placed
  if (id !== undefined) return `Order #${id} is placed.`
  if (status === 'interrupted') return 'An earlier page sent it. Press again: it is the same order.'
  return error ? `${error.name}: ${error.message}` : ''
}
