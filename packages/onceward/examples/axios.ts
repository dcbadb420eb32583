/** axios hands its requests to any function of `fetch`'s shape (1.12 and newer). Leave retries to what keeps the key. */
import axios from 'axios'
import { createIdempotentFetch } from 'onceward'

const idempotentFetch = createIdempotentFetch()

export const api = axios.create({ adapter: 'fetch', env: { fetch: idempotentFetch, Request, Response } } as object)

export const placeOrder = async (prefix: string, cart: { item: string; qty: number }): Promise<{ id: number }> =>
  (await api.post<{ id: number }>(`${prefix}/orders`, cart)).data
