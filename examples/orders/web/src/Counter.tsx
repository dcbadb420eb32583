import { useEffect, useRef } from 'react'
import { change, DRINKS, next, QTY_MAX, type Cart } from './cart.js'
import { switches, toggle, TROUBLES, type Trouble } from './troubles.js'

interface Props {
  readonly cart: Cart
  readonly order: { readonly status: string }
  /** Whether the naive client still knows that it ordered: a refresh takes that from it. */
  readonly naiveKnows: boolean
  readonly network: boolean | undefined
  readonly isOld: boolean
  readonly onPress: () => void
}

export function Counter({ cart, order, naiveKnows, network, isOld, onPress }: Props) {
  const isPlaced = cart.placed !== undefined
  const isDone = isPlaced && naiveKnows
  const label = isDone ? `Placed: order #${cart.placed}` : isPlaced ? 'Press again: the naive one forgot' : order.status === 'pending' ? 'Ordering … press again' : cart.pressed ? 'Press again' : 'Order'
  // A button that is disabled loses the focus: it goes to the one that is next.
  const orderButton = useRef<HTMLButtonElement>(null)
  const nextButton = useRef<HTMLButtonElement>(null)
  const hasFocus = useRef(false)
  useEffect(() => {
    if (!hasFocus.current) return
    if (isDone) nextButton.current?.focus()
    else if (!cart.pressed) orderButton.current?.focus()
  }, [isDone, cart.pressed])
  return (
    <section className="card counter" aria-labelledby="counter-title">
      <h2 id="counter-title">The counter <code className="ticket" title="This cart: one intent">{cart.ticket}</code></h2>
      <fieldset className="menu" disabled={cart.pressed}>
        <legend>What will it be?</legend>
        {DRINKS.map((drink) => (
          <label key={drink}>
            <input type="radio" name="drink" checked={cart.drink === drink} onChange={() => change({ drink })} />
            <span>{drink}</span>
          </label>
        ))}
        <label className="qty">
          <span>How many</span>
          <input type="number" min={1} max={QTY_MAX} value={cart.qty} onChange={({ target }) => {
            const qty = Math.round(Number(target.value))
            if (qty >= 1 && qty <= QTY_MAX) change({ qty })
          }} />
        </label>
      </fieldset>
      <fieldset className="troubles">
        <legend>What goes wrong?</legend>
        {(Object.keys(TROUBLES) as Trouble[]).map((it) => <Switch key={it} trouble={it} isOff={TROUBLES[it].network && network === false} />)}
      </fieldset>
      {network === false && <p className="note">The network here is a good one. <a href={networkOrigin()}>Through the demo’s own</a> answers can be lost, and the server killed.</p>}
      <div className="press" onFocus={() => (hasFocus.current = true)} onBlur={({ relatedTarget }) => (hasFocus.current = relatedTarget === null)}>
        <button id="order" ref={orderButton} type="button" className="primary" disabled={isDone} onClick={onPress}>{label}</button>
        <button id="next" ref={nextButton} type="button" disabled={!cart.pressed} onClick={next}>Next customer</button>
      </div>
      <p className="note" role="status">{isOld ? 'The server does not answer at the moment. It is on its way back.' : ''}</p>
    </section>
  )
}

function Switch({ trouble, isOff }: { readonly trouble: Trouble; readonly isOff: boolean }) {
  const { title, hint } = TROUBLES[trouble]
  const isOn = switches.use().includes(trouble)
  return (
    <label className="switch">
      <input id={trouble} type="checkbox" role="switch" checked={isOn && !isOff} disabled={isOff} onChange={() => toggle(trouble)} />
      <span className="track" aria-hidden="true" />
      <span className="words"><b>{title}</b><small>{hint}</small></span>
    </label>
  )
}

const networkOrigin = () => document.querySelector<HTMLMetaElement>('meta[name=network]')?.content ?? ''
