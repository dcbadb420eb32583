/** A page of one origin and the gateway at another, before a service that answers preflights, or does not. */
import type { Browser, Page } from 'playwright-core'
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest'
import { openBrowser, publish } from './support/browser.js'
import { FaultProxy, deferred } from './support/faultProxy.js'
import { Shop } from './support/shop.js'

const PAGE = `
import { createIdempotentFetch, lookup } from 'onceward'
const attempts = (globalThis.attempts = [])
const server = new URLSearchParams(location.search).get('server')
const clientOf = (options) => createIdempotentFetch({ onAttempt: ({ observation }) => attempts.push(observation), endpoints: server + '/.idempotency', ...options })
const fetch = clientOf({})
/** What a page can read of an answer or an error. */
const read = async (response) => ({ status: response.status, outcome: response.headers.get('idempotency-outcome'),
  replayed: response.headers.get('idempotency-replayed'), ...(await response.json()) })
globalThis.order = (item, { options, headers, ...init } = {}) => (options ? clientOf(options) : fetch)(server + '/orders', {
  method: 'POST', headers: { 'content-type': 'application/json', ...headers }, body: JSON.stringify({ item, qty: 1 }), ...init,
}).then(read, ({ name, executed, problem, response }) => ({ name, executed, code: problem?.code, instance: problem?.instance,
  outcome: response?.headers.get('idempotency-outcome') }))
globalThis.recalled = (intent) => lookup(fetch, intent).then(async ({ state, response }) => [state, (await response?.json())?.item])
`
interface Said {
  readonly status?: number
  readonly outcome?: string | null
  readonly replayed?: string | null
  readonly name?: string
  readonly executed?: string
  readonly code?: string
  readonly item?: string
}
declare global {
  var order: (item: string, more?: object) => Promise<Said>
  var recalled: (intent: string) => Promise<unknown[]>
  var attempts: object[]
}

let browser: Browser
let shop: Shop
/** Where pages come from that the service allows, and those that it does not. */
let site: FaultProxy
let stranger: FaultProxy
let page: Page
beforeAll(async () => {
  ;[browser, shop, site, stranger] = await Promise.all([openBrowser(), Shop.open(), new FaultProxy(0).open(), new FaultProxy(0).open()])
  shop.back.allows = { origin: site.url, headers: 'content-type' }
  await Promise.all([site, stranger].map((door) => publish(door, '/t/cross', PAGE)))
})
afterAll(async () => {
  await browser?.close()
  await Promise.all([shop?.close(), site?.close(), stranger?.close()])
})

async function open(from = site, server = shop.url): Promise<Page> {
  const page = await (await browser.newContext()).newPage()
  await page.goto(`${from.url}/t/cross?server=${encodeURIComponent(server)}`)
  await page.waitForFunction(() => 'order' in globalThis)
  return page
}
beforeEach(async () => {
  page = await open()
  return () => page.context().close()
})
const order = (page: Page, item: string, more: object = {}) => page.evaluate(([item, more]) => globalThis.order(item, more), [item, more] as const)
async function made(work: () => Promise<void>): Promise<number> {
  const before = await shop.total()
  await work()
  return (await shop.total()) - before
}
/** What came to the gateway since. */
const since = (door = shop.front) => {
  const from = door.seen.length
  return () => door.seen.slice(from).map(({ method, url, headers }) => ({
    what: `${method} ${url}`, asks: headers['access-control-request-headers'], key: headers['idempotency-key'],
    prefer: headers['prefer'], born: headers['idempotency-first-sent'],
  }))
}

test('what a preflight may not know goes only once keys are known to be honoured there', async () => {
  const seen = since()
  expect(await made(async () => {
    expect(await order(page, 'far tea')).toMatchObject({ status: 201, outcome: 'stored', replayed: null, item: 'far tea' })
    expect(await order(page, 'farther tea')).toMatchObject({ status: 201, outcome: 'stored', item: 'farther tea' })
  })).toBe(2)
  const came = seen()
  // The gateway allows the others too at the first preflight, which a browser remembers for a while.
  const asked = came[0]
  const [first, second, ...more] = came.filter(({ what }) => !what.startsWith('OPTIONS'))
  expect(more).toEqual([])
  expect(asked).toMatchObject({ what: 'OPTIONS /orders', asks: 'content-type,idempotency-key' })
  expect(first).toMatchObject({ what: 'POST /orders', prefer: undefined, born: undefined, key: expect.any(String) as string })
  expect(second).toMatchObject({ what: 'POST /orders', prefer: 'wait=10', born: expect.stringMatching(/GMT$/) as string })
})

test('a lost answer is sent again once the policy page says that keys are honoured, and its replay is read', async () => {
  const seen = since()
  shop.front.dropResponses = 1
  expect(await made(async () => {
    expect(await order(page, 'lost tea')).toMatchObject({ status: 201, outcome: 'replayed', replayed: 'true', item: 'lost tea' })
  })).toBe(1)
  const came = seen()
  // The policy is asked for without a preflight, before the second POST.
  expect(came.map(({ what }) => what)).not.toContain('OPTIONS /.idempotency/policy')
  const [first, policy, second] = came.filter(({ what }) => !what.startsWith('OPTIONS'))
  expect([first, policy, second]).toMatchObject([
    { what: 'POST /orders', prefer: undefined }, { what: 'GET /.idempotency/policy' }, { what: 'POST /orders', prefer: 'wait=10', key: first!.key! },
  ])
})

test('refusals are read: outcome, problem and Retry-After', async () => {
  const headers = { 'idempotency-key': 'far-1' }
  const other = await open()
  expect(await made(async () => {
    const held = deferred()
    shop.back.hold = held.promise
    const begun = shop.back.answers
    const first = order(page, 'held tea', { headers })
    await shop.back.answered(begun + 1)
    // Another browser with the same key gets that it runs, and for how long to wait.
    const second = order(other, 'held tea', { headers, options: { wait: 0 } })
    await other.waitForFunction(() => globalThis.attempts.length > 0)
    const [observation] = await other.evaluate(() => globalThis.attempts)
    expect(observation).toMatchObject({ status: 409, outcome: 'in-flight', code: 'in_flight', executed: 'unknown', retry: 'wait' })
    expect((observation as { retryAfterMs: number }).retryAfterMs).toBeGreaterThanOrEqual(1000)
    shop.back.hold = undefined
    held.open()
    expect([await first, await second]).toMatchObject([{ outcome: 'stored' }, { outcome: 'replayed' }])
    expect(await order(other, 'another tea', { headers })).toMatchObject({
      name: 'KeyReusedError', executed: 'unknown', code: 'key_reused', outcome: 'mismatch', instance: expect.any(String) as string,
    })
  })).toBe(1)
  await other.context().close()
})

test('what became of an earlier page’s order is read from the other origin', async () => {
  expect(await made(async () => {
    const held = deferred()
    shop.front.hold = held.promise
    const begun = shop.front.answers
    await page.evaluate(() => void globalThis.order('left tea', { intent: 'far:1' }))
    await shop.front.answered(begun + 1)
    await page.reload()
    shop.front.hold = undefined
    held.open()
    await page.waitForFunction(() => 'recalled' in globalThis)
    const posts = shop.front.posts()
    expect(await page.evaluate(() => globalThis.recalled('far:1'))).toEqual(['answered', 'left tea'])
    expect(shop.front.posts()).toBe(posts)
  })).toBe(1)
})

test('a page that the service does not allow orders nothing, and gets an error', async () => {
  const other = await open(stranger)
  const seen = since()
  expect(await made(async () => {
    // A browser does not say that it sent nothing, so nobody here can.
    expect(await order(other, 'strange tea', { deadline: 1500 })).toMatchObject({ name: 'OutcomeUnknownError', executed: 'unknown' })
  })).toBe(0)
  expect(seen().filter(({ what }) => what.startsWith('POST'))).toEqual([])
  await other.context().close()
})

test('honoured_true_sends_no_header_that_a_preflight_may_refuse', async () => {
  const plain = await shop.plain()
  plain.allows = { origin: site.url, headers: 'content-type, idempotency-key' }
  const seen = since(plain)
  const other = await open(site, plain.url)
  expect(await made(async () => {
    expect(await order(other, 'plain tea', { options: { honoured: true } })).toMatchObject({ status: 201, outcome: null })
  })).toBe(1)
  expect(seen()).toMatchObject([{ what: 'OPTIONS /orders' }, { what: 'POST /orders', prefer: undefined, born: undefined }])
  await other.context().close()
  await plain.close()
})
