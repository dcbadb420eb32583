/** Which presses are one action, in real Chromium: tabs, Back, dialogs, pages that are left, tabs that stand still. */
import { chromium } from 'playwright-core'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { browserOptions, openBrowser, publish } from './support/browser.js'
import { chunks } from './support/bundle.js'
import { deferred } from './support/faultProxy.js'
import { inFlight, play, until, type Browser, type BrowserContext, type Page } from './support/scenes.js'
import { Shop } from './support/shop.js'

const PAGE = `
import { useState } from 'react'
import { createRoot } from 'react-dom/client'
import { createIdempotentFetch } from 'onceward'
import { useIdempotentMutation } from 'onceward/react'
import { handleSubmit } from 'onceward/forms'

const fetch = createIdempotentFetch({ deadline: Number(new URLSearchParams(location.search).get('deadline') ?? 60000) })
const init = (item, more) => ({ method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify({ item, qty: 1 }), ...more })
globalThis.order = (item, more) => fetch('/orders', init(item, more)).then((r) => r.json()).then(({ id }) => id, ({ name, executed }) => [name, executed])
globalThis.upload = (more) => { const data = new FormData(); data.set('item', 'tea'); data.set('file', new File([], '')); return fetch('/orders', { method: 'POST', body: data, ...more }).then(({ status }) => status, ({ name }) => name) }
globalThis.naive = (item, more) => globalThis.fetch('/orders', init(item, { ...more, headers: { 'content-type': 'application/json', 'idempotency-key': crypto.randomUUID() } }))
globalThis.handle = (form, options) => handleSubmit(form, { fetch, ...options })

function Dialog() {
  const order = useIdempotentMutation({
    ...(!location.search.includes('unnamed') && { intent: 'checkout:7' }), fetch,
    // A time in the content, as many a form has.
    mutationFn: (cart, { json }) => json('/orders', { item: 'tea at ' + (location.search.includes('time') ? Date.now() : 'noon'), qty: cart.qty }),
  })
  return <section>
    <button id="buy" onClick={() => order.mutate({ qty: 2 })}>Buy</button>
    <p id="status">{order.status}</p>
    <output id="order">{order.data?.id}</output>
  </section>
}
function App() {
  const [isOpen, setOpen] = useState(true)
  return <main><button id="toggle" onClick={() => setOpen(!isOpen)}>Dialog</button>{isOpen && <Dialog />}</main>
}
createRoot(document.getElementById('root')).render(<App />)
`
interface Tools {
  order: (item: string, more?: object) => Promise<unknown>
  upload: (more?: object) => Promise<unknown>
  naive: (item: string, more?: object) => Promise<unknown>
  handle: (form: HTMLFormElement, options: object) => void
}
declare const globalThis: Tools & typeof window

let browser: Browser
let shop: Shop
beforeAll(async () => {
  ;[browser, shop] = await Promise.all([openBrowser(), Shop.open()])
  await publish(shop.front, '/t/actions', PAGE)
  shop.front.pages.set('/t/elsewhere', { type: 'text/html', body: '<!doctype html><html lang="en"><title>t</title><link rel="icon" href="data:,">' })
})
afterAll(async () => {
  await browser?.close()
  await shop?.close()
})

async function made(scene: (open: (path?: string) => Promise<Page>, context: BrowserContext) => Promise<void>): Promise<number> {
  const [made] = await play({ browser, doors: [shop.front, shop.back], arrive: async () => undefined, count: async () => [await shop.total()] }, (it) =>
    scene(async (path = '/t/actions') => {
      const page = await it.open()
      await page.goto(shop.url + path)
      await page.waitForSelector('#buy')
      return page
    }, it.context))
  return made!
}
const shown = async (page: Page, status = 'success') => {
  await page.waitForFunction((status) => document.querySelector('#status')?.textContent === status, status)
  return page.textContent('#order')
}

describe('named_intent', () => {
  test('second_tab_open_since_before_shows_the_end_and_a_press_is_the_same_order', async () => {
    expect(await made(async (open) => {
      const [one, two] = [await open(), await open()]
      expect(await two.textContent('#status')).toBe('idle')
      await one.click('#buy')
      const id = await shown(one)
      expect(await shown(two)).toBe(id)
      await two.click('#buy')
      await shown(two)
      expect(await two.textContent('#order')).toBe(id)
    })).toBe(1)
  })

  test('page_that_comes_back_shows_the_end', async () => {
    expect(await made(async (open) => {
      const page = await open()
      await page.click('#buy')
      const id = await shown(page)
      await page.goto(`${shop.url}/t/elsewhere`)
      await page.goBack()
      expect(await shown(page)).toBe(id)
      await page.click('#buy')
      expect(await shown(page)).toBe(id)
    })).toBe(1)
  })

  test('refresh_in_flight_with_a_time_in_the_content_is_one_order', async () => {
    expect(await made(async (open) => {
      const page = await open('/t/actions?time')
      const goOn = await inFlight(shop.back, () => page.click('#buy'))
      await page.reload()
      await page.click('#buy')
      goOn()
      expect(await shown(page)).toMatch(/^\d+$/)
    })).toBe(1)
  })

  test('form_with_a_csrf_token_made_at_each_load_gets_the_first_response', async () => {
    expect(await made(async (open) => {
      const page = await open()
      const submit = async () => {
        await page.evaluate(() => {
          document.body.innerHTML = `<form action="/orders" method="post"><input name="item" value="tea"><input type="hidden" name="csrf_token" value="${Math.random()}"><button id="send">Buy</button></form><output></output>`
          const output = document.querySelector('output')!
          globalThis.handle(document.forms[0]!, { intent: 'form:7', onResponse: (it: Response) => (output.textContent = it.headers.get('idempotency-outcome')), onError: (it: Error) => (output.textContent = it.name) })
        })
        await page.click('#send')
        await page.waitForFunction(() => document.querySelector('output')!.textContent !== '')
        return page.textContent('output')
      }
      expect(await submit()).toBe('stored')
      await page.reload()
      await page.waitForSelector('#buy')
      expect(await submit()).toBe('replayed')
    })).toBe(0) // the service takes JSON only, and its 4xx is the response
  })
})

describe('dialog', () => {
  for (const query of ['', '?unnamed']) {
    test(`closed_in_flight_and_opened_again_is_one_order${query}`, async () => {
      expect(await made(async (open) => {
        const page = await open(`/t/actions${query}`)
        const goOn = await inFlight(shop.back, () => page.click('#buy'))
        await page.click('#toggle')
        await page.waitForSelector('#buy', { state: 'detached' })
        const answers = shop.front.answers
        goOn()
        await shop.front.answered(answers + 1)
        await page.click('#toggle')
        if (query === '') await shown(page)
        await page.click('#buy')
        expect(await shown(page)).toMatch(/^\d+$/)
      })).toBe(1)
    })
  }
})

describe('page_that_is_left', () => {
  const ROUNDS = process.env['ONCEWARD_LONG'] ? 20 : 5
  for (const event of ['pagehide', 'visibilitychange'] as const) {
    for (const how of ['naive', 'order'] as const) {
      test(`keepalive_send_in_${event}_leaves_with_${how === 'naive' ? 'plain fetch, the control' : 'a key'}`, async () => {
        expect(await made(async (open) => {
          for (let round = 0; round < ROUNDS; round++) {
            const page = await open()
            const posts = shop.front.posts()
            await page.evaluate(([event, how, item]) => {
              const target = event === 'pagehide' ? window : document
              target.addEventListener(event, () => void globalThis[how](item, { keepalive: true }), { once: true })
            }, [event, how, `left tea ${round}`] as const)
            await page.goto(`${shop.url}/t/elsewhere`)
            await shop.front.saw(posts + 1)
            expect(shop.front.seen.filter(({ method }) => method === 'POST').at(-1)!.headers['idempotency-key']).toBeDefined()
            // Until it is in the database.
            await expect.poll(async () => (await (await fetch(`${shop.url}/orders?limit=1`)).json()) as object).toMatchObject([{ item: `left tea ${round}` }])
            await page.close()
          }
        })).toBe(ROUNDS)
      })
    }
  }

  test('form_with_keepalive_begins_in_the_same_task', async () => {
    expect(await made(async (open) => {
      const page = await open()
      const posts = shop.front.posts()
      await page.evaluate(() => window.addEventListener('pagehide', () => void globalThis.upload({ keepalive: true }), { once: true }))
      await page.goto(`${shop.url}/t/elsewhere`)
      await shop.front.saw(posts + 1)
    })).toBe(0)
  })

  test('named_keepalive_send_is_known_to_the_next_page', async () => {
    expect(await made(async (open) => {
      const page = await open()
      const posts = shop.front.posts()
      await page.evaluate(() => window.addEventListener('pagehide', () => void globalThis.order('left tea', { keepalive: true, intent: 'checkout:7' }), { once: true }))
      await page.goto(`${shop.url}/t/elsewhere`)
      await shop.front.saw(posts + 1)
      await page.goto(`${shop.url}/t/actions`)
      expect(await shown(page)).toMatch(/^\d+$/)
    })).toBe(1)
  })

  test('send_that_had_not_begun_ends_as_not_sent_and_does_not_leave_later', async () => {
    // Chromium as a person has it, with the back/forward cache that automation turns off.
    const cached = await chromium.launch({ ...browserOptions(), ignoreDefaultArgs: ['--disable-back-forward-cache'] })
    try {
      const page = await cached.newPage()
      await page.goto(`${shop.url}/t/actions`)
      await page.waitForSelector('#buy')
      const posts = shop.front.posts()
      await page.evaluate(() => {
        window.addEventListener('pagehide', () => void globalThis.order('late tea').then((it) => Object.assign(globalThis, { late: it })), { once: true })
        window.addEventListener('pageshow', ({ persisted }) => Object.assign(globalThis, { persisted }))
      })
      await page.goto(`${shop.url}/t/elsewhere`)
      await page.goBack({ waitUntil: 'commit' })
      await page.waitForSelector('#buy')
      if (await page.evaluate(() => (globalThis as unknown as { persisted?: boolean }).persisted)) {
        await until(page, async () => 'late' in globalThis)
        expect(await page.evaluate(() => (globalThis as unknown as { late: unknown }).late)).toEqual(['NotSentError', 'no'])
      }
      expect(shop.front.posts()).toBe(posts)
    } finally {
      await cached.close()
    }
  })

  test('send_that_begins_in_a_pagehide_that_was_dispatched_is_not_sent', async () => {
    expect(await made(async (open) => {
      const page = await open()
      expect(await page.evaluate(() => new Promise((resolve) => {
        window.addEventListener('pagehide', () => resolve(globalThis.order('hidden tea')), { once: true })
        window.dispatchEvent(new PageTransitionEvent('pagehide', { persisted: true }))
      }))).toEqual(['NotSentError', 'no'])
      await page.evaluate(() => window.dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true })))
      expect(await page.evaluate(() => globalThis.order('back tea'))).toEqual(expect.any(Number))
    })).toBe(1)
  })
})

describe('deploy', () => {
  test('nothing_that_a_send_needs_is_loaded_later', async () => {
    for (const source of [`export { idempotentFetch } from 'onceward'`, `export { useIdempotentMutation } from 'onceward/react'; export { handleSubmit } from 'onceward/forms'`]) {
      const built = await chunks(source)
      expect(built.flatMap((chunk) => chunk.dynamicImports)).toEqual([])
      expect(built).toHaveLength(1)
    }
  })

  test('form_data_is_sent_though_every_script_is_gone', async () => {
    expect(await made(async (open, context) => {
      const page = await open()
      await context.route(/\.js$/, (route) => route.fulfill({ status: 404 }))
      expect(await page.evaluate(() => globalThis.upload())).toEqual(expect.any(Number))
    })).toBe(0)
  })
})

describe('tab_that_stands_still', () => {
  test('is_passed_over_with_its_own_key', async () => {
    expect(await made(async (open) => {
      const [one, two] = [await open(), await open()]
      const open_ = deferred()
      shop.front.hold = open_.promise
      const begun = shop.front.answers
      await one.evaluate(() => void globalThis.order('still tea'))
      await shop.front.answered(begun + 1)
      // An alert that nobody closes: the page stands still, and keeps its lock.
      one.on('dialog', () => undefined)
      void one.evaluate(() => alert('still')).catch(() => undefined)
      const posts = shop.front.posts()
      const second = two.evaluate(() => globalThis.order('still tea'))
      await shop.front.saw(posts + 1)
      shop.front.hold = undefined
      open_.open()
      expect(await second).toEqual(expect.any(Number))
      const keys = shop.front.seen.filter(({ method }) => method === 'POST').slice(-2).map(({ headers }) => headers['idempotency-key'])
      expect(new Set(keys).size).toBe(1)
    })).toBe(1)
  })

  test('does_not_hold_the_second_tab_beyond_its_deadline', async () => {
    expect(await made(async (open) => {
      const [one, two] = [await open(), await open('/t/actions?deadline=1000')]
      const goOn = await inFlight(shop.back, () => one.evaluate(() => void globalThis.order('held tea')))
      expect(await two.evaluate(() => globalThis.order('held tea'))).toEqual(['InFlightError', 'unknown'])
      goOn()
    })).toBe(1)
  })
})
