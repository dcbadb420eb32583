import { kept } from './kept.js'

export const DRINKS = ['Flat white', 'Green tea', 'Hot chocolate'] as const
export const QTY_MAX = 20

/** What a person is about to order: one cart is one intent, in each tab and after each refresh. */
export interface Cart {
  /** Names the cart, and stands in the rows that it makes. */
  readonly ticket: string
  readonly drink: string
  readonly qty: number
  /** From the first press on it is not changed: another payload would be another request. */
  readonly pressed: boolean
  /** The order that it became. */
  readonly placed?: number
}

const LETTERS = 'ABCDEFGHJKLMNPQRSTUVWXYZ23456789'

const fresh = (drink: string, qty: number): Cart => ({
  ticket: Array.from(crypto.getRandomValues(new Uint8Array(4)), (byte) => LETTERS[byte % LETTERS.length]).join(''),
  drink,
  qty,
  pressed: false,
})

export const cart = kept<Cart>('localStorage', 'counter.cart', () => fresh(DRINKS[0], 2))

export const change = (part: Partial<Cart>) => cart.set({ ...cart.get(), ...part })
export const next = () => cart.set(fresh(cart.get().drink, cart.get().qty))

export type Client = 'onceward' | 'naive'

/** What is sent. The service knows nothing of clients and carts: the name of the item says them, for our eyes. */
export const wanted = ({ drink, qty, ticket }: Cart, client: Client) => ({ item: `${drink} · ${ticket} · ${client}`, qty })
