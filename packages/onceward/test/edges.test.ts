/** What networks, servers and callers do that nobody expects of them. */
import { createServer, type RequestListener } from 'node:http'
import type { AddressInfo } from 'node:net'
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import {
  createIdempotentFetch, isNotSentError, isOutcomeUnknownError, issuedKeys, memoryStorage, Mutation, lookup, type Attempt, type KeyStorage,
  type MutationOptions, type Options,
} from '../src/index.js'
import { deferred } from './support/faultProxy.js'
import { Shop } from './support/shop.js'

let shop: Shop
beforeAll(async () => { shop = await Shop.open() })
afterAll(() => shop.close())

const attempts: Attempt[] = []
beforeEach(() => { attempts.length = 0 })
const client = (options: Options = {}) => createIdempotentFetch({ onAttempt: (attempt) => attempts.push(attempt), onWarning: () => undefined, ...options })
let orders = 0
const order = () => ({
  method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify({ item: `odd tea ${++orders}`, qty: 1 }),
})
const at = (path = '/orders') => shop.url + path
const caught = (promise: Promise<unknown>) => promise.then(() => undefined, (error: unknown) => error)
async function made(work: () => Promise<void>): Promise<number> {
  const before = await shop.total()
  await work()
  return (await shop.total()) - before
}
/** A server of another kind, for as long as it is needed. */
async function beside(listener: RequestListener, work: (url: string) => Promise<void>): Promise<void> {
  const server = createServer(listener)
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  try {
    await work(`http://127.0.0.1:${(server.address() as AddressInfo).port}/orders`)
  } finally {
    server.closeAllConnections()
    server.close()
  }
}
/** The service without the gateway. */
async function withoutKeys(work: (door: Awaited<ReturnType<Shop['plain']>>) => Promise<void>): Promise<void> {
  const door = await shop.plain()
  try { await work(door) } finally { await door.close() }
}

describe('time', () => {
  test('an answer that stops in its middle is asked for again', async () => {
    await client()(at(), order()) // keys are known to be honoured from here on
    shop.front.stallNext = 1
    expect(await made(async () => {
      const response = await client({ attemptTimeout: 500 })(at(), order())
      expect(response.headers.get('idempotency-outcome')).toBe('replayed')
    })).toBe(1)
    expect(attempts.at(-2)!.observation).toEqual({ failure: 'timeout' })
  })

  test('a policy page that never answers does not outlast the deadline', async () => {
    const seen: string[] = []
    await beside(({ method }, outgoing) => { seen.push(method!); if (method === 'POST') outgoing.destroy() }, async (url) => {
      expect(isOutcomeUnknownError(await caught(client({ deadline: 300 })(url, order())))).toBe(true)
    })
    expect(seen).toEqual(['POST', 'GET'])
  })

  test('a server that never issues a key does not outlast the deadline', async () => {
    await beside(() => undefined, async (url) => {
      expect(isNotSentError(await caught(client({ deadline: 300, keys: issuedKeys() })(url, order())))).toBe(true)
    })
  })

  test('a deadline without end is one', async () => {
    shop.front.dropResponses = 1
    expect(await made(async () => {
      expect((await client({ deadline: Infinity, attemptTimeout: Infinity })(at(), order())).status).toBe(201)
    })).toBe(1)
    expect(attempts.map(({ observation }) => ('failure' in observation ? observation.failure : observation.status))).toEqual(['network', 201])
  })
})

describe('what is sent', () => {
  test.each<[string, () => BodyInit]>([
    ['Blob', () => new Blob([])], ['text', () => ''], ['bytes', () => new Uint8Array()], ['form', () => new URLSearchParams()],
  ])('an empty %s is sent, and sent again', async (_, body) => {
    const posts = shop.front.posts()
    shop.front.dropResponses = 1
    const response = await client()(at(), { method: 'POST', body: body() })
    expect(response.headers.get('idempotency-outcome')).toBe('replayed')
    expect(shop.front.posts() - posts).toBe(2)
  })

  test('what the caller prefers stands beside what we prefer', async () => {
    const what = order()
    await client()(at(), { ...what, headers: { ...what.headers, Prefer: 'return=minimal' } })
    expect(shop.front.seen.at(-1)!.headers['prefer']).toBe('return=minimal, wait=10')
  })

  test('a multipart body of its author’s own hand arrives as it was', async () => {
    const body = '--form\r\ncontent-disposition: form-data; name="form"\r\n\r\nform\r\n--form--\r\n'
    await beside((incoming, outgoing) => void incoming.pipe(outgoing.setHeader('seen', incoming.headers['content-type']!)), async (url) => {
      const type = 'multipart/form-data; boundary=form'
      const response = await client()(url, { method: 'POST', headers: { 'content-type': type }, body })
      expect([response.headers.get('seen'), await response.text()]).toEqual([type, body])
    })
  })
})

describe('a key that the caller made', () => {
  const mine = (what: ReturnType<typeof order>, key: string) => ({ ...what, headers: { ...what.headers, 'Idempotency-Key': key } })

  test('is not sent a second time either to where keys are not honoured', () => withoutKeys(async (plain) => {
    plain.dropResponses = 1
    const fetch = client()
    const what = mine(order(), 'mine-1')
    expect(await made(async () => {
      for (let i = 0; i < 2; i++) expect(isOutcomeUnknownError(await caught(fetch(`${plain.url}/orders`, what)))).toBe(true)
    })).toBe(1)
    expect(plain.posts()).toBe(1)
  }))

  test('does not join another user’s request', async () => {
    let user = 'ann'
    const fetch = client({ user: () => user })
    const what = mine(order(), 'mine-2')
    const open = deferred()
    shop.front.hold = open.promise
    const [posts, begun] = [shop.front.posts(), shop.front.answers]
    const first = fetch(at(), what)
    await shop.front.answered(begun + 1)
    user = 'bob'
    const second = fetch(at(), what)
    await shop.front.saw(posts + 2)
    shop.front.hold = undefined
    open.open()
    await Promise.all([first, second])
  })
})

describe('a mutation', () => {
  const mutation = <V>(url: string, fetch: ReturnType<typeof client>, more: Partial<MutationOptions<unknown, V>> = {}) =>
    new Mutation<unknown, V>({
      intent: `odd:${url}`, fetch,
      mutationFn: (body, { fetch }) => fetch(url, { ...order(), body: JSON.stringify(body) }).then(async (r) => [r.status, await r.json()]), ...more,
    })

  test('to where there are no keys is refused as often as it is sent', () => withoutKeys(async (plain) => {
    const it = mutation<object>(`${plain.url}/orders`, client())
    for (let i = 0; i < 2; i++) expect(await it.mutate({ item: 'no quantity' })).toMatchObject([422, {}])
  }))

  test('whose key a full storage did not take at first is still not sent twice', () => withoutKeys(async (plain) => {
    const memory = memoryStorage()
    let isFull = true
    const storage: KeyStorage = {
      ...memory,
      set: (name, text) => {
        if (isFull) { isFull = false; throw new Error('full') }
        return memory.set(name, text)
      },
    }
    plain.dropResponses = 1
    const it = mutation<object>(`${plain.url}/orders`, client({ storage }))
    expect(await made(async () => {
      for (let i = 0; i < 2; i++) expect(isOutcomeUnknownError(await caught(it.mutate({ item: 'tea', qty: 1 })))).toBe(true)
    })).toBe(1)
  }))

  test.each<[string, unknown, unknown]>([
    ['blobs', new Blob(['a']), new Blob(['ab'])],
    ['files', new File(['a'], 'a.txt'), new File(['a'], 'b.txt')],
    ['bigints', { amount: 1n }, { amount: 2n }],
    ['integers beyond 2^53', { amount: 2 ** 60 }, { amount: 2 ** 61 }],
    ['maps', new Map([['a', 1]]), new Map([['a', 2]])],
    ['bytes', new Uint8Array([1]).buffer, new Uint8Array([2]).buffer],
    ['forms', new URLSearchParams('a=1'), new URLSearchParams('a=2')],
  ])('tells two %s apart', async (_, one, two) => {
    const open = deferred()
    const it = mutation<unknown>(at(), client(), { mutationFn: async (variables) => (await open.promise, variables) })
    const all = [it.mutate(one), it.mutate(two)]
    open.open()
    const [first, second] = await Promise.all(all)
    expect([first === one, second === two]).toEqual([true, true])
  })

  /** An order whose page went away before the answer came. */
  async function left(storage: KeyStorage) {
    const options = { storage, endpoints: at('/.idempotency') }
    const open = deferred()
    shop.front.hold = open.promise
    const begun = shop.front.answers
    const it = mutation<object>(at(), client(options))
    const body = { item: `left tea ${++orders}`, qty: 1 }
    const first = caught(it.mutate(body))
    await shop.front.answered(begun + 1)
    it.reset()
    await first
    shop.front.hold = undefined
    open.open()
    return { options, body }
  }
  const settled = (it: Mutation<unknown, object>) =>
    new Promise<string>((resolve) => it.subscribe(() => it.get().status !== 'pending' && resolve(it.get().status)))

  test('that cannot read the answer of an earlier page keeps its key', async () => {
    expect(await made(async () => {
      const { options, body } = await left(memoryStorage())
      const broken = mutation<object>(at(), client(options), { restore: () => { throw new Error('not as it was') } })
      const over = settled(broken)
      broken.resume()
      expect(await over).toBe('error')
      // The next page can.
      const it = mutation<object>(at(), client(options))
      const shown = settled(it)
      it.resume()
      expect(await shown).toBe('success')
      expect(it.get().data).toMatchObject({ item: body.item })
      // The name stays known, with its end.
      await expect.poll(async () => JSON.parse((await options.storage.get((await options.storage.names())[0]!))!) as object, { timeout: 10_000 }).toHaveProperty('end')
    })).toBe(1)
  })

  test('whose page goes away once more while it asks keeps its key', async () => {
    expect(await made(async () => {
      const { options, body } = await left(memoryStorage())
      const stop = new AbortController()
      const leaving = client({
        ...options,
        fetch: async (request) => {
          const response = await fetch(request)
          const whole = new Response(await response.arrayBuffer(), response)
          stop.abort()
          return whole
        },
      })
      expect(await caught(lookup(leaving, `odd:${at()}`, { signal: stop.signal }))).toMatchObject({ name: 'AbortError' })
      expect(await mutation<object>(at(), client(options)).mutate(body)).toMatchObject([201, {}])
    })).toBe(1)
  })
})
