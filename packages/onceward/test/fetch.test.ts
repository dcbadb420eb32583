import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import {
  createIdempotentFetch, derivedKey, forget, derivedKeys, isAnswerNotKeptError, isInFlightError, isKeyReusedError, isKeyRefusedError,
  isNotSentError, isOncewardError, isOutcomeUnknownError, issuedKeys, memoryStorage, lookup, webStorage, type Attempt, type KeyStorage, type Options,
} from '../src/index.js'
import { deferred } from './support/faultProxy.js'
import { Shop } from './support/shop.js'

let shop: Shop
beforeAll(async () => { shop = await Shop.open() })
afterAll(() => shop.close())

const attempts: Attempt[] = []
const warnings: string[] = []
beforeEach(() => { attempts.length = warnings.length = 0 })
const client = (options: Options = {}) =>
  createIdempotentFetch({ onAttempt: (attempt) => attempts.push(attempt), onWarning: (text) => warnings.push(text), ...options })
let orders = 0
/** A new order, unlike all before it. */
const order = (fields = {}) => ({
  method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify({ item: `tea ${++orders}`, qty: 1, ...fields }),
})
const at = (path = '/orders') => shop.url + path
const caught = (promise: Promise<unknown>) => promise.then(() => undefined, (error: unknown) => error)
async function made<T>(work: () => Promise<T>): Promise<{ orders: number; result: T }> {
  const before = await shop.total()
  const result = await work()
  return { result, orders: (await shop.total()) - before }
}

describe('one key', () => {
  test('a lost answer is asked for under the same key, and comes', async () => {
    shop.front.dropResponses = 2
    const { result, orders } = await made(() => client()(at(), order()))
    expect(result.status).toBe(201)
    expect(result.headers.get('idempotency-outcome')).toBe('replayed')
    expect(orders).toBe(1)
    expect(attempts.map(({ observation }) => ('failure' in observation ? observation.failure : observation.outcome))).toEqual(['network', 'network', 'replayed'])
    expect(new Set(attempts.map(({ key }) => key)).size).toBe(1)
  })

  test('a double click is one intent, and both get an answer', async () => {
    const fetch = client()
    const what = order()
    const posts = shop.front.posts()
    const { result, orders } = await made(() => Promise.all([fetch(at(), what), fetch(at(), what), fetch(at(), what)]))
    const bodies = await Promise.all(result.map((response) => response.text()))
    expect(new Set(bodies).size).toBe(1)
    expect(orders).toBe(1)
    expect(shop.front.posts() - posts).toBe(1)
  })

  test('an equal order after the first is settled is another', async () => {
    const fetch = client()
    const what = order()
    const { orders } = await made(async () => { await fetch(at(), what); await fetch(at(), what) })
    expect(orders).toBe(2)
  })


  test('a key that the caller made is the one that is sent', async () => {
    shop.front.dropResponses = 1
    const what = order()
    const headers = { ...what.headers, 'Idempotency-Key': 'my-key-1' }
    const { orders } = await made(() => client()(at(), { ...what, headers }))
    expect(orders).toBe(1)
    expect(shop.front.seen.slice(-2).map(({ headers }) => headers['idempotency-key'])).toEqual(['my-key-1', 'my-key-1'])
  })

  test('GET has no key', async () => {
    await (await client()(at())).text()
    expect(shop.front.seen.at(-1)!.headers['idempotency-key']).toBeUndefined()
  })

  test('first-sent and prefer are on every attempt, and the birth stays the same', async () => {
    shop.front.dropResponses = 1
    await client({ wait: 7 })(at(), order())
    const [first, second] = shop.front.seen.filter(({ method }) => method === 'POST').slice(-2)
    expect(first!.headers['prefer']).toBe('wait=7')
    expect(first!.headers['idempotency-first-sent']).toMatch(/^\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT$/)
    expect(second!.headers['idempotency-first-sent']).toBe(first!.headers['idempotency-first-sent'])
  })

  test('each kind of body is sent again as the very same bytes', async () => {
    const form = new FormData()
    form.set('item', 'tea')
    form.set('file', new Blob([Uint8Array.from({ length: 300 }, (_, i) => i & 255)]), 'all.bin')
    const stream = new Blob([order().body]).stream()
    const bodies: RequestInit[] = [
      { body: form }, { body: new URLSearchParams({ item: 'tea' }) }, { body: new Blob(['tea']) }, { body: new Uint8Array([0, 255, 13, 10]) }, {},
      { body: stream, duplex: 'half' } as RequestInit,
    ]
    for (const body of bodies) {
      shop.front.dropResponses = 1
      const response = await client()(at(), { method: 'POST', ...body })
      // The service has its own mind about what it was sent; the gateway would say 422 if the second were another.
      expect(response.headers.get('idempotency-outcome')).toBe('replayed')
    }
  })

  test('a form is the same request after a refresh, though its boundary is random', async () => {
    const storage = memoryStorage()
    const form = () => { const data = new FormData(); data.set('item', 'tea'); data.set('note', '\u00ff€'); return data }
    shop.front.dropResponses = 100
    await caught(client({ storage, deadline: 300 })(at(), { method: 'POST', body: form() }))
    shop.front.dropResponses = 0
    const again = await client({ storage })(at(), { method: 'POST', body: form() })
    expect(again.headers.get('idempotency-outcome')).toBe('replayed')
  })
})

describe('where it is kept', () => {
  const interrupted = async (options: Options, what = order(), init = {}) => {
    shop.front.dropResponses = 100
    const error = await caught(client({ deadline: 300, ...options })(at(), { ...what, ...init }))
    shop.front.dropResponses = 0
    expect(isOutcomeUnknownError(error)).toBe(true)
    return what
  }

  test('a key outlives its page while the outcome is open, and is let go after', async () => {
    const storage = memoryStorage()
    const { orders } = await made(async () => {
      const what = await interrupted({ storage })
      const again = await client({ storage })(at(), what)
      expect(again.headers.get('idempotency-outcome')).toBe('replayed')
    })
    expect(orders).toBe(1)
    expect(await storage.names()).toEqual([])
  })

  test('the payload is not kept, and the user not by name', async () => {
    const storage = memoryStorage()
    await interrupted({ storage, user: 'ann@shop.example' }, order({ item: 'a secret' }))
    const texts = await Promise.all((await storage.names()).map(async (name) => name + (await storage.get(name))))
    expect(texts).toHaveLength(1)
    expect(texts[0]).not.toMatch(/secret|ann@/)
    const entry = JSON.parse((await storage.get((await storage.names())[0]!))!) as object
    expect(Object.keys(entry).sort()).toEqual(['born', 'digest', 'doubt', 'intent', 'key', 'origin'])
  })

  test('another user never meets it', async () => {
    const storage = memoryStorage()
    const what = await interrupted({ storage, user: 'ann' })
    const response = await client({ storage, user: 'bob' })(at(), what)
    expect(response.headers.get('idempotency-outcome')).toBe('stored')
  })

  test('storage that fails falls back to memory, and says so once', async () => {
    const broken: KeyStorage = {
      get: () => { throw new Error('blocked') }, set: () => { throw new Error('full') }, remove: () => { throw new Error('blocked') },
      names: () => Promise.reject(new Error('blocked')),
    }
    const fetch = client({ storage: broken })
    shop.front.dropResponses = 100
    const what = order()
    await caught(fetch(at(), { ...what, deadline: 300 }))
    shop.front.dropResponses = 0
    expect((await fetch(at(), what)).headers.get('idempotency-outcome')).toBe('replayed')
    expect(warnings).toHaveLength(1)
    expect(warnings[0]).toMatch(/memory only.*(blocked|full)/)
  })

  test('where there is no web storage, memory is used and it says so', async () => {
    expect((await client({ storage: webStorage('local') })(at(), order())).status).toBe(201)
    expect(warnings).toHaveLength(1)
  })

  test('forget makes the next one another', async () => {
    const storage = memoryStorage()
    const what = await interrupted({ storage }, order(), { intent: 'cart:2' })
    const fetch = client({ storage })
    await forget(fetch, 'cart:2')
    expect((await fetch(at(), { ...what, intent: 'cart:2' })).headers.get('idempotency-outcome')).toBe('stored')
  })

  test('recall asks and sends nothing', async () => {
    const storage = memoryStorage()
    const options = { storage, endpoints: at('/.idempotency') }
    expect(await lookup(client(options), 'cart:3')).toEqual({ state: 'none' })
    const open = deferred()
    shop.front.hold = open.promise
    const begun = shop.front.answers
    const stop = new AbortController()
    const first = caught(client(options)(at(), { ...order(), intent: 'cart:3', signal: stop.signal }))
    await shop.front.answered(begun + 1)
    stop.abort()
    await first
    shop.front.hold = undefined
    open.open()
    const posts = shop.front.posts()
    const recalled = await lookup(client(options), 'cart:3')
    expect(recalled.state).toBe('answered')
    expect(recalled.state === 'answered' && recalled.response.status).toBe(201)
    expect(shop.front.posts()).toBe(posts)
    // The name stays known after its end.
    expect(await lookup(client(options), 'cart:3')).toMatchObject({ state: 'answered' })
    await forget(client(options), 'cart:3')
    expect(await lookup(client(options), 'cart:3')).toEqual({ state: 'none' })
  })
})

describe('the end', () => {
  test('still running at the deadline is an InFlightError, and the same call later gets the answer', async () => {
    const open = deferred()
    shop.back.hold = open.promise
    const fetch = client({ wait: 0, attemptTimeout: 500 })
    const what = order()
    const { result, orders } = await made(async () => {
      try {
        let error = await caught(fetch(at(), { ...what, deadline: 5000 }))
        // On a busy machine the deadline may cut the last asking, and what was not received is unknown.
        for (let more = 5; isOutcomeUnknownError(error) && more > 0; more--) error = await caught(fetch(at(), { ...what, deadline: 5000 }))
        expect(error).toSatisfy(isInFlightError)
        expect((error as { executed: string }).executed).toBe('unknown')
      } finally {
        // What comes after this test must not wait for it.
        open.open()
        shop.back.hold = undefined
      }
      return fetch(at(), what)
    })
    expect(result.status).toBe(201)
    expect(orders).toBe(1)
  })

  test('unknown_outcome_is_looked_up_then_thrown_and_the_key_is_kept', async () => {
    const storage = memoryStorage()
    shop.back.dropResponses = 1
    const what = order()
    const { orders } = await made(async () => {
      for (let i = 0; i < 2; i++) {
        const error = await caught(client({ storage })(at(), what))
        expect(isOutcomeUnknownError(error)).toBe(true)
        expect(error).toMatchObject({ executed: 'unknown', problem: { code: 'outcome_unknown' } })
      }
    })
    expect(orders).toBe(1)
    expect(attempts.at(-1)!.isStatusQuery).toBe(true)
    expect(await storage.names()).toHaveLength(1)
  })

  test('a key that came with another request is a KeyReusedError, and is not rotated', async () => {
    const headers = { 'content-type': 'application/json', 'Idempotency-Key': 'twice-1' }
    await client()(at(), { ...order(), headers })
    const { result, orders } = await made(() => caught(client()(at(), { ...order(), headers })))
    expect(isKeyReusedError(result)).toBe(true)
    expect(orders).toBe(0)
    expect(attempts.slice(-1)[0]!.observation).toMatchObject({ status: 422 })
  })

  test('malformed_key_is_refused_with_the_fix', async () => {
    const error = await caught(client()(at(), { ...order(), headers: { 'Idempotency-Key': 'a b' } }))
    expect(isKeyRefusedError(error)).toBe(true)
    expect(error).toMatchObject({ executed: 'no', problem: { code: 'key_invalid' } })
  })

  test('an abort rejects with its reason, and the key is kept', async () => {
    const storage = memoryStorage()
    const open = deferred()
    shop.front.hold = open.promise
    const stop = new AbortController()
    const what = order()
    const { orders } = await made(async () => {
      const begun = shop.front.answers
      const first = caught(client({ storage })(at(), { ...what, signal: stop.signal }))
      await shop.front.answered(begun + 1)
      stop.abort(new Error('enough'))
      expect(await first).toMatchObject({ message: 'enough' })
      shop.front.hold = undefined
      open.open()
      expect((await client({ storage })(at(), what)).headers.get('idempotency-outcome')).toBe('replayed')
    })
    expect(orders).toBe(1)
  })

  test('one of two that gives up does not take the answer from the other', async () => {
    const open = deferred()
    shop.front.hold = open.promise
    const fetch = client()
    const what = order()
    const stop = new AbortController()
    const first = caught(fetch(at(), { ...what, signal: stop.signal }))
    const begun = shop.front.answers
    const second = fetch(at(), what)
    await shop.front.answered(begun + 1)
    stop.abort()
    expect(await first).toMatchObject({ name: 'AbortError' })
    shop.front.hold = undefined
    open.open()
    expect((await second).status).toBe(201)
  })

  test('an attempt that takes too long is asked for again', async () => {
    await client()(at(), order()) // keys are known to be honoured from here on
    const open = deferred()
    shop.front.hold = open.promise
    const { result, orders } = await made(async () => {
      const begun = shop.front.answers
      const answer = client({ attemptTimeout: 500 })(at(), order())
      await shop.front.answered(begun + 1)
      shop.front.hold = undefined
      return answer
    })
    open.open()
    expect(result.headers.get('idempotency-outcome')).toBe('replayed')
    expect(orders).toBe(1)
    expect(attempts.at(-2)!.observation).toEqual({ failure: 'timeout' })
  })

  test('the gateway killed and started again: the answer comes', async () => {
    const { result, orders } = await made(async () => {
      const open = deferred()
      shop.front.hold = open.promise
      const begun = shop.front.answers
      const answer = client()(at(), order())
      await shop.front.answered(begun + 1)
      await shop.killGateway()
      shop.front.hold = undefined
      shop.front.cutAll()
      open.open()
      await shop.startGateway()
      return answer
    })
    expect(result.headers.get('idempotency-outcome')).toBe('replayed')
    expect(orders).toBe(1)
  })
})

describe('never the duplicate itself', () => {
  test('where keys are not honoured a lost answer is sent no second time', async () => {
    const plain = await shop.plain()
    try {
      plain.dropResponses = 1
      const { result, orders } = await made(() => caught(client()(`${plain.url}/orders`, order())))
      expect(isOutcomeUnknownError(result)).toBe(true)
      expect((result as Error).message).toMatch(/not known to honour keys: look whether/)
      expect(orders).toBe(1)
      expect(plain.posts()).toBe(1)
      expect(plain.seen.map(({ url }) => url)).toContain('/.idempotency/policy')
    } finally {
      await plain.close()
    }
  })

  test('honoured_true_at_a_server_without_keys_makes_two_orders', async () => {
    const plain = await shop.plain()
    try {
      plain.dropResponses = 1
      const { orders } = await made(() => client({ honoured: true })(`${plain.url}/orders`, order()))
      expect(orders).toBe(2) // a lie costs an order: the guard above is what prevents it
    } finally {
      await plain.close()
    }
  })

  test('a service without keys is used as with fetch', async () => {
    const plain = await shop.plain()
    try {
      const fetch = client()
      expect((await fetch(`${plain.url}/orders`, order())).status).toBe(201)
      const wrong = { ...order(), body: '{"item": "tea"}' }
      for (let i = 0; i < 2; i++) expect((await fetch(`${plain.url}/orders`, wrong)).status).toBe(422)
    } finally {
      await plain.close()
    }
  })
})

describe('where keys come from', () => {
  test('derived: the same from two programs that share nothing', async () => {
    const what = order()
    const options = { user: 'ann', keys: derivedKeys() }
    const { orders } = await made(async () => {
      await client(options)(at(), { ...what, intent: 'import:7' })
      const second = await client(options)(at(), { ...what, intent: 'import:7' })
      expect(second.headers.get('idempotency-outcome')).toBe('replayed')
    })
    expect(orders).toBe(1)
    expect(attempts.at(-1)!.key).toBe(derivedKey('ann', 'import:7', JSON.parse(what.body)))
  })

  test('derived: a body that is no JSON is sent nowhere, and a time in it is warned of', async () => {
    const posts = shop.front.posts()
    expect(isNotSentError(await caught(client({ keys: derivedKeys() })(at(), { method: 'POST', body: 'a=1' })))).toBe(true)
    expect(shop.front.posts()).toBe(posts)
    const warned: string[] = []
    await client({ keys: derivedKeys((text) => warned.push(text)) })(at(), order({ timestamp: 5 }))
    expect(warned).toEqual([expect.stringMatching(/timestamp.*leave it out/)])
  })

  test('issued: a server that issues none is said so, and nothing is sent', async () => {
    const seen: (string | undefined)[] = []
    const server = createServer((incoming, outgoing) => {
      seen.push(incoming.url)
      outgoing.writeHead(404).end()
    })
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
    const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/orders`
    const result = await caught(client({ keys: issuedKeys() })(url, order()))
    expect(isNotSentError(result)).toBe(true)
    expect((result as Error).message).toMatch(/issues no key \(404\)/)
    expect(seen).toEqual(['/.idempotency/keys?path=%2Forders'])
    server.closeAllConnections()
    server.close()
  })

  test('issued: the gateway takes the key that it gave, and no other', async () => {
    const strict = await Shop.open('[[route]]\npath = "/orders"\nkeys = "issued"\n')
    try {
      const url = `${strict.url}/orders`
      expect((await client({ keys: issuedKeys() })(url, order())).status).toBe(201)
      expect(attempts.at(-1)!.key).toMatch(/^i1-/)
      const before = await strict.total()
      const other = await caught(client()(url, order()))
      expect(other instanceof Response ? other.status : (other as { response?: Response }).response?.status).toBe(400)
      expect(await strict.total()).toBe(before)
    } finally {
      await strict.close()
    }
  })

  test('issued: the key that the server gave is sent', async () => {
    const seen: (string | undefined)[] = []
    let busy = 1
    const server = createServer((incoming, outgoing) => {
      incoming.resume()
      if (incoming.url === '/.idempotency/keys?path=%2Forders') {
        if (busy-- > 0) return void outgoing.writeHead(503).end()
        return void outgoing.writeHead(201, { 'content-type': 'application/json' }).end('{"key":"issued-1","expires_at":"2030-01-01T00:00:00Z"}')
      }
      seen.push(incoming.headers['idempotency-key'] as string)
      outgoing.writeHead(201, { 'idempotency-outcome': 'stored' }).end()
    })
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
    const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/orders`
    expect((await client({ keys: issuedKeys() })(url, order())).status).toBe(201)
    expect(seen).toEqual(['"issued-1"'])
    server.closeAllConnections()
    server.close()
  })
})

test('guards know what they are for, also from another copy of the package', () => {
  const other = Object.assign(new Error('x'), { name: 'AnswerNotKeptError', executed: 'yes' })
  expect([isAnswerNotKeptError(other), isOncewardError(other), isOutcomeUnknownError(other)]).toEqual([true, true, false])
  expect(isOncewardError(new Error('InFlightError'))).toBe(false)
})
