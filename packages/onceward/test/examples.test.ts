/** The examples that need no page: each makes one order of a lost response, where the library alone, as the control, has none. */
import axios from 'axios'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { placeOrder } from '../examples/axios.js'
import { storeOf } from '../examples/rtkQuery.js'
import { Shop } from './support/shop.js'

let shop: Shop
beforeAll(async () => { shop = await Shop.open() })
afterAll(() => shop.close())
const made = async (work: () => Promise<void>) => {
  const before = await shop.total()
  await work()
  return (await shop.total()) - before
}

test('axios_example_makes_one_order_of_a_lost_response', async () => {
  expect(await made(async () => {
    shop.front.dropResponses = 1
    expect(await placeOrder(shop.url, { item: 'tea by axios', qty: 1 })).toMatchObject({ id: expect.any(Number) as number })
  })).toBe(1)
  // The control.
  shop.front.dropResponses = 1
  await expect(axios.post(`${shop.url}/orders`, { item: 'tea', qty: 1 }, { adapter: 'fetch' })).rejects.toThrow()
})

test('rtk_query_example_makes_one_order_of_a_lost_response', async () => {
  expect(await made(async () => {
    shop.front.dropResponses = 1
    const { store, api } = storeOf(shop.url)
    expect(await store.dispatch(api.endpoints.placeOrder.initiate({ item: 'tea by rtk', qty: 1 }))).toMatchObject({ data: { id: expect.any(Number) as number } })
  })).toBe(1)
})
