/** RTK Query: `fetchBaseQuery` takes any function of `fetch`'s shape. Leave `retry` of the toolkit out: it has no key. */
import { createApi, fetchBaseQuery } from '@reduxjs/toolkit/query'
import { configureStore } from '@reduxjs/toolkit'
import { createIdempotentFetch } from 'onceward'

interface Cart { item: string; qty: number }
interface Order extends Cart { id: number }

export function storeOf(baseUrl: string) {
  const api = createApi({
    baseQuery: fetchBaseQuery({ baseUrl, fetchFn: createIdempotentFetch() }),
    endpoints: (build) => ({
      placeOrder: build.mutation<Order, Cart>({ query: (body) => ({ url: '/orders', method: 'POST', body }) }),
    }),
  })
  const store = configureStore({ reducer: { [api.reducerPath]: api.reducer }, middleware: (getDefault) => getDefault().concat(api.middleware) })
  return { store, api }
}
