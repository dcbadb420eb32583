import type { Client } from './cart.js'
import type { Row } from './orders.js'

interface Props {
  readonly client: Client
  readonly title: string
  /** Of this cart, newest first. */
  readonly rows: readonly Row[]
  /** Of all carts and both clients. */
  readonly all: readonly Row[]
  readonly status: string
  readonly said: string
}

const SLIPS_MAX = 6

/** Why one client ordered once, and the other as often as it tried. */
const WHY: Record<Client, string> = {
  onceward: 'Each try had the same key: the gateway returned the first response again.',
  naive: 'Each try had a new key: the gateway cannot know that it is the same order.',
}

/** How many orders one client made of the cart, as slips on a spike. */
export function Side({ client, title, rows, all, status, said }: Props) {
  const carts = new Set(all.map((row) => row.ticket)).size
  const total = all.filter((row) => row.client === client).length
  return (
    <article id={client} className={`card side ${client}`} data-orders={rows.length} data-status={status}>
      <h2>{title}</h2>
      <p className="count" aria-live="polite"><b>{rows.length}</b> <span>{rows.length === 1 ? 'order' : 'orders'}</span></p>
      <ol className="slips" aria-label={`Orders in the database, ${title}`}>
        {rows.slice(0, SLIPS_MAX).map((row) => (
          <li key={row.id}><code>#{row.id}</code> <span>{row.qty} × {row.drink}</span></li>
        ))}
        {rows.length > SLIPS_MAX && <li className="more">and {rows.length - SLIPS_MAX} more</li>}
        {rows.length === 0 && <li className="none">no order yet</li>}
      </ol>
      <p className="said" aria-live="polite">{status === 'pending' && !said ? <span className="busy">waiting for an answer</span> : said}</p>
      <p className="why">{rows.length > 0 && WHY[client]}</p>
      <p className="total">{total} {total === 1 ? 'order' : 'orders'} for {carts} {carts === 1 ? 'cart' : 'carts'} so far</p>
    </article>
  )
}
