/** openapi-fetch hands over whole `Request`s, and takes any function of `fetch`'s shape. */
import createClient from 'openapi-fetch'
import { createIdempotentFetch } from 'onceward'

interface Order { id: number; item: string; qty: number }
/** As `openapi-typescript` writes it. */
interface paths {
  '/orders': {
    post: {
      requestBody: { content: { 'application/json': { item: string; qty: number } } }
      responses: { 201: { content: { 'application/json': Order } } }
    }
  }
}

export const clientOf = (baseUrl: string) => createClient<paths>({ baseUrl, fetch: createIdempotentFetch() })
