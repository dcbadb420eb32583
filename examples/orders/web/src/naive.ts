/** The client as it is written without us: it tries again, and each time with a fresh key. */

import { newKey } from 'onceward'
import { useState } from 'react'
import { wanted, type Cart } from './cart.js'
import type { Order } from './orders.js'
import { send } from './traffic.js'

const PATIENCE_MS = 2000
const PAUSE_MS = 700
const TRIES_MAX = 10

async function order(cart: Cart): Promise<Order> {
  for (let tries = 1; ; tries += 1) {
    try {
      const response = await send('naive', new Request('/orders', {
        method: 'POST',
        headers: { 'content-type': 'application/json', 'idempotency-key': newKey() },
        body: JSON.stringify(wanted(cart, 'naive')),
        signal: AbortSignal.timeout(PATIENCE_MS),
      }))
      if (!response.ok) throw new Error(`the service returned ${response.status}`)
      return await response.json()
    } catch (error) {
      if (tries === TRIES_MAX) throw error
      await new Promise((resolve) => setTimeout(resolve, PAUSE_MS))
    }
  }
}

/** What it says, and how to order. It forgets all of it when the page is left. */
export function useNaive({ ticket }: Cart) {
  const [state, setState] = useState({ ticket, running: 0, said: '' })
  // Another cart starts empty; what still runs for the last one says nothing here.
  const mine = state.ticket === ticket ? state : { ticket, running: 0, said: '' }
  return {
    isPending: mine.running > 0,
    said: mine.said,
    order: (cart: Cart) => {
      const change = (by: number, said: string) => setState((old) => {
        const from = old.ticket === cart.ticket ? old : { ticket: cart.ticket, running: 0, said: '' }
        return { ...from, running: from.running + by, said }
      })
      change(1, '')
      void order(cart).then(({ id }) => change(-1, `Order #${id} is placed.`), () => change(-1, 'It gave up.'))
    },
  }
}
