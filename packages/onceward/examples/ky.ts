/** ky retries by itself, with a key of its own making or none: leave the retries to what keeps the key. */
import ky from 'ky'
import { createIdempotentFetch } from 'onceward'

export const api = ky.create({ fetch: createIdempotentFetch(), retry: 0, timeout: false })

export function placeOrder(prefix: string, cart: { item: string; qty: number }): Promise<{ id: number }> {
  return api.post(`${prefix}/orders`, { json: cart }).json()
}
