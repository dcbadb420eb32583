import { useEffect, useState } from 'react'
import type { Client } from './cart.js'
import { traffic } from './traffic.js'

export interface Order {
  readonly id: number
  readonly item: string
  readonly qty: number
  readonly created_at: string
}

/** A row that a counter made. */
export interface Row extends Order {
  readonly drink: string
  readonly ticket: string
  readonly client: Client
}

interface Known {
  readonly rows: readonly Row[]
  /** Whether the page was loaded through the network that can be bad. */
  readonly network: boolean | undefined
  readonly isOld: boolean
}

const POLL_MS = 1000
const ROWS_MAX = 1000

const rowOf = (order: Order): Row[] => {
  const [drink, ticket, client] = order.item.split(' · ')
  return ticket && (client === 'onceward' || client === 'naive') ? [{ ...order, drink: drink!, ticket, client }] : []
}

/** The rows of the database: the truth. Asked for after each answer, and now and then. */
export function useOrders(): Known {
  const [known, setKnown] = useState<Known>({ rows: [], network: undefined, isOld: false })
  const answers = traffic.use().filter((it) => it.state !== 'waiting').length
  useEffect(() => {
    const stop = new AbortController()
    let timer: ReturnType<typeof setTimeout>
    const look = async () => {
      try {
        const response = await fetch(`/orders?limit=${ROWS_MAX}`, { cache: 'no-store', signal: stop.signal })
        if (!response.ok) throw new Error(`${response.status}`)
        const orders: Order[] = await response.json()
        setKnown({ rows: orders.flatMap(rowOf), network: response.headers.get('demo-network') !== null, isOld: false })
      } catch {
        if (stop.signal.aborted) return
        setKnown((old) => ({ ...old, isOld: true }))
      }
      timer = setTimeout(look, POLL_MS)
    }
    void look()
    return () => {
      stop.abort()
      clearTimeout(timer)
    }
  }, [answers])
  return known
}
