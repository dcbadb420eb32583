/** What else a browser does: no secure context, tabs that die, storage that is full, other places, forms, other libraries. */
import { afterAll, beforeAll, expect, test } from 'vitest'
import { clientOf } from '../examples/openapi.js'
import { placeOrder } from '../examples/ky.js'
import { openBrowser, publish, withoutStorage } from './support/browser.js'
import { deferred } from './support/faultProxy.js'
import { duplicate, inLine, play, type Browser, type BrowserContext, type Page } from './support/scenes.js'
import { Shop } from './support/shop.js'

let browser: Browser
let shop: Shop
let context: BrowserContext

const TOOLS = `
import { createIdempotentFetch, lookup, isOncewardError } from 'onceward'
import { indexedDBStorage } from 'onceward/indexeddb'
import { handleSubmit } from 'onceward/forms'
const tools = (globalThis.tools = { warnings: [] })
const place = new URLSearchParams(location.search).get('storage') ?? 'session'
const storage = place === 'indexeddb' ? indexedDBStorage() : place
const heard = new EventTarget()
const fetch = createIdempotentFetch({
  storage, onWarning: (text) => tools.warnings.push(text),
  fetch: async (request) => {
    const response = await globalThis.fetch(request)
    setTimeout(() => heard.dispatchEvent(new Event('headers')))
    return response
  },
})
tools.order = (item, init = {}) => fetch('/orders', { method: 'POST', headers: { 'content-type': 'application/json' },
  body: JSON.stringify({ item, qty: 1 }), ...init }).then((r) => r.json()).then(({ id }) => id, (error) => isOncewardError(error) ? error.name : String(error))
tools.giveUp = async (item) => {
  const stop = new AbortController()
  heard.addEventListener('headers', () => stop.abort(new Error('enough')), { once: true })
  return tools.order(item, { signal: stop.signal })
}
tools.lookup = (intent) => lookup(fetch, intent).then(({ state }) => state)
tools.handleSubmit = (form, options) => handleSubmit(form, { fetch, ...options })
`
interface Tools {
  order: (item: string, init?: object) => Promise<number | string>
  /** Orders, and gives up when the headers of an answer are there. */
  giveUp: (item: string) => Promise<number | string>
  lookup: (intent: string) => Promise<string>
  handleSubmit: (form: HTMLFormElement, options: object) => void
  warnings: string[]
}
declare global {
  var tools: Tools
}

beforeAll(async () => {
  ;[browser, shop] = await Promise.all([openBrowser(), Shop.open()])
  await publish(shop.front, '/t/tools', TOOLS)
  for (const name of ['TanStack', 'FormAction']) {
    const element = name === 'TanStack' ? `<Shop cart={{ id: '7', item: 'tea', qty: 2 }} />` : `<OrderForm cart="7" />`
    await publish(shop.front, `/t/${name}`, `
import { createRoot } from 'react-dom/client'
import * as example from './examples/${name}.tsx'
const { Shop, OrderForm } = example
createRoot(document.getElementById('root')).render(${element})`)
  }
})
afterAll(async () => {
  await browser?.close()
  await shop?.close()
})

async function made(scene: (open: (path?: string, origin?: string) => Promise<Page>) => Promise<void>): Promise<number> {
  const stage = { browser, doors: [shop.front, shop.back], arrive: async () => undefined, count: async () => [await shop.total()] }
  const [made] = await play(stage, async (it) => {
    context = it.context
    await scene(async (path = '/t/tools', origin = shop.url) => {
      const page = await it.open()
      await page.goto(origin + path)
      return page
    })
  })
  return made!
}
/** Calls, and keeps the promise in the page for later. */
const begin = (page: Page, item: string) => page.evaluate((item) => void Object.assign(globalThis, { later: globalThis.tools.order(item) }), item)
const later = (page: Page) => page.evaluate(() => (globalThis as unknown as { later: Promise<unknown> }).later)
const hold = () => {
  const open = deferred()
  shop.back.hold = open.promise
  return () => { shop.back.hold = undefined; open.open() }
}
const lan = () => `http://shop.lan:${shop.front.port}`

/** Until a tab has found that another one has the turn: a press that comes after the first is settled is another order. */
async function looks(page: Page) {
  await page.evaluate(() => {
    const get = Storage.prototype.getItem
    Object.assign(globalThis, { looks: 0 })
    Storage.prototype.getItem = function (name) {
      if (name.startsWith('onceward-turn:')) (globalThis as unknown as { looks: number }).looks++
      return get.call(this, name)
    }
  })
  return () => page.waitForFunction(() => (globalThis as unknown as { looks: number }).looks > 1)
}

test('on plain http, where there are no locks, two tabs are one order', async () => {
  expect(await made(async (open) => {
    const [one, two] = [await open('/t/tools', lan()), await open('/t/tools', lan())]
    expect(await one.evaluate(() => [isSecureContext, 'locks' in navigator, 'randomUUID' in crypto, 'subtle' in crypto])).toEqual([false, false, false, false])
    const goOn = hold()
    const begun = shop.back.answers
    await begin(one, 'plain tea')
    await shop.back.answered(begun + 1)
    const looked = await looks(two)
    await begin(two, 'plain tea')
    await looked()
    goOn()
    expect(await later(one)).toBe(await later(two))
  })).toBe(1)
})

for (const [where, origin] of [['with Web Locks', () => shop.url], ['with a lease', lan]] as const) {
  test(`a tab that dies while it sends: the one that waits goes on with its key, ${where}`, async () => {
    expect(await made(async (open) => {
      const [one, two] = [await open('/t/tools', origin()), await open('/t/tools', origin())]
      const goOn = hold()
      const begun = shop.back.answers
      const posts = shop.front.posts()
      await begin(one, 'last tea')
      await shop.back.answered(begun + 1)
      await begin(two, 'last tea')
      // Until it has asked who has the turn, it does not know whose key to go on with.
      await two.waitForFunction(() => new Promise((resolve) => setTimeout(() => resolve(true), 500)))
      await one.close()
      await shop.front.saw(posts + 2)
      goOn()
      expect(await later(two)).toEqual(expect.any(Number))
      const keys = shop.front.seen.filter(({ method }) => method === 'POST').slice(posts).map(({ headers }) => headers['idempotency-key'])
      expect(new Set(keys).size).toBe(1)
    })).toBe(1)
  })
}

test('copied_tab_orders_again_once_the_first_is_settled', async () => {
  expect(await made(async (open) => {
    const one = await open()
    const goOn = hold()
    const begun = shop.back.answers
    await begin(one, 'copied tea')
    await shop.back.answered(begun + 1)
    const two = await duplicate(context, one)
    await two.waitForFunction(() => 'tools' in globalThis)
    await begin(two, 'copied tea')
    await inLine(two)
    goOn()
    const id = await later(one)
    expect(await later(two)).toBe(id)
    // An equal order after the first is settled is another, in each tab.
    expect(await two.evaluate(() => globalThis.tools.order('copied tea'))).toBe(Number(id) + 1)
  })).toBe(2)
})

test('who gives up an answer that stopped in its middle leaves the turn to the next', async () => {
  expect(await made(async (open) => {
    const page = await open()
    shop.front.stallNext = 1
    expect(await page.evaluate(() => globalThis.tools.giveUp('stopped tea'))).toBe('Error: enough')
    expect(await page.evaluate(() => globalThis.tools.order('stopped tea'))).toEqual(expect.any(Number))
  })).toBe(1)
})

test.each(['local', 'session', 'indexeddb'])('a key in %s outlives a crash of the page', async (storage) => {
  expect(await made(async (open) => {
    const page = await open(`/t/tools?storage=${storage}`)
    const goOn = hold()
    const begun = shop.back.answers
    const item = `tea in ${storage}`
    await begin(page, item)
    await shop.back.answered(begun + 1)
    await page.goto('about:blank')
    goOn()
    await page.goto(`${shop.url}/t/tools?storage=${storage}`)
    expect(await page.evaluate((item) => globalThis.tools.order(item), item)).toEqual(expect.any(Number))
    expect(await page.evaluate(() => globalThis.tools.warnings)).toEqual([])
  })).toBe(1)
})

test('storage that is full falls back to memory, says so, and the order is one', async () => {
  expect(await made(async (open) => {
    const page = await open('/t/tools?storage=local')
    await page.evaluate(() => {
      for (let size = 1 << 20; size >= 1; size >>= 1) {
        try { for (let i = 0; ; i++) localStorage.setItem(`${size}.${i}`, 'x'.repeat(size)) } catch { /* full by this size */ }
      }
    })
    shop.front.dropResponses = 1
    expect(await page.evaluate(() => globalThis.tools.order('full tea'))).toEqual(expect.any(Number))
    expect(await page.evaluate(() => globalThis.tools.warnings)).toEqual([expect.stringMatching(/memory only.*quota/i)])
  })).toBe(1)
})

test('where nothing may be kept, and no lock is given, memory does, says so, and the order is one', async () => {
  expect(await made(() => withoutStorage(async (blocked) => {
    const page = await blocked.newPage()
    await page.goto(`${shop.url}/t/tools`)
    expect(await page.evaluate(() => navigator.locks.request('any', () => 'given').catch(({ name }: Error) => name))).toBe('SecurityError')
    shop.front.dropResponses = 1
    expect(await page.evaluate(() => globalThis.tools.order('blocked tea'))).toEqual(expect.any(Number))
    expect(await page.evaluate(() => globalThis.tools.warnings)).toEqual([expect.stringMatching(/memory only.*denied/i)])
  }))).toBe(1)
})

test('a form is sent once, however often it is submitted while it runs', async () => {
  expect(await made(async (open) => {
    const page = await open()
    await page.evaluate(() => {
      document.body.innerHTML = `<form action="/orders" method="post"><input name="item" value="tea"><button id="buy" name="by" value="hand">Buy</button></form><output></output>`
      globalThis.tools.handleSubmit(document.forms[0]!, { onResponse: (response: Response) => (document.querySelector('output')!.textContent += ` ${response.status}`) })
    })
    const goOn = hold()
    const posts = shop.front.posts()
    const begun = shop.back.answers
    await page.dblclick('#buy')
    await shop.back.answered(begun + 1)
    goOn()
    await page.waitForFunction(() => document.querySelector('output')!.textContent!.split(' ').length === 3)
    expect(shop.front.posts() - posts).toBe(1)
    // The service takes JSON alone and says so: the form went as a browser sends it, and each submit got that answer.
    expect(await page.textContent('output')).toMatch(/^ (4\d\d) \1$/)
  })).toBe(0)
})

test.each(['TanStack', 'FormAction'])('the example %s makes one order of a lost answer', async (name) => {
  expect(await made(async (open) => {
    const page = await open(`/t/${name}`)
    await page.waitForSelector('#buy')
    shop.front.dropResponses = 1
    await page.click('#buy')
    await page.waitForFunction(() => document.querySelector('#status')?.textContent === 'success')
    expect(await page.textContent('#order')).toMatch(/^\d+$/)
  })).toBe(1)
})

test('the examples of ky and openapi-fetch make one order of a lost answer', async () => {
  expect(await made(async () => {
    shop.front.dropResponses = 1
    expect(await placeOrder(shop.url, { item: 'tea by ky', qty: 1 })).toMatchObject({ id: expect.any(Number) as number })
    shop.front.dropResponses = 1
    const { data } = await clientOf(shop.url).POST('/orders', { body: { item: 'tea by openapi', qty: 1 } })
    expect(data).toMatchObject({ item: 'tea by openapi' })
  })).toBe(2)
})
