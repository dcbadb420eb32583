import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { openBrowser, publish } from './support/browser.js'
import { deferred } from './support/faultProxy.js'
import { COUNTER, NAIVE } from './support/pages.js'
import { duplicate, inFlight as held, inLine as waits, play as playOn, ROUNDS, type Browser, type Page, type Scene } from './support/scenes.js'
import { Shop } from './support/shop.js'

let browser: Browser
let shop: Shop
beforeAll(async () => {
  ;[browser, shop] = await Promise.all([openBrowser(), Shop.open()])
  await publish(shop.front, '/t/counter', COUNTER)
  await publish(shop.front, '/t/naive', NAIVE)
})
afterAll(async () => {
  await browser?.close()
  await shop?.close()
})

/** How many orders a scene made on this page. */
async function play(path: string, scene: (scene: Scene) => Promise<void>): Promise<number> {
  const arrive = async (page: Page) => {
    await page.goto(shop.url + path)
    await page.waitForSelector('#buy')
  }
  const [made] = await playOn({ browser, doors: [shop.front, shop.back], arrive, count: async () => [await shop.total()] }, scene)
  return made!
}
const answer = async (page: Page) => {
  await page.waitForFunction(() => document.querySelector('#status')?.textContent === 'success')
  return page.textContent('#order')
}
/** Until the service has taken the order, while its answer is held behind the gateway. */
const inFlight = (page: Page) => held(shop.back, () => page.click('#buy'))

/** The naive page waits for nobody. */
const inLine = async (page: Page) => {
  if (!page.url().includes('naive')) await waits(page)
}

/** Each ends with its answer on the page. What it makes is counted after. */
const SCENES: Record<string, (scene: Scene) => Promise<void>> = {
  'a double click': async ({ open }) => {
    const page = await open()
    const goOn = await inFlight(page)
    await page.click('#buy')
    await page.dblclick('#buy')
    goOn()
    expect(await answer(page)).toMatch(/^\d+$/)
  },
  'a refresh while in flight, and another click': async ({ open }) => {
    const page = await open()
    const goOn = await inFlight(page)
    await page.reload()
    await page.waitForSelector('#buy')
    await page.click('#buy')
    goOn()
    expect(await answer(page)).toMatch(/^\d+$/)
  },
  'a lost answer': async ({ open }) => {
    const page = await open()
    shop.front.dropResponses = 1
    await page.click('#buy')
    expect(await answer(page)).toMatch(/^\d+$/)
  },
  'two tabs': async ({ open }) => {
    const [one, two] = [await open(), await open()]
    const goOn = await inFlight(one)
    await two.click('#buy')
    await inLine(two)
    goOn()
    expect(await answer(one)).toBe(await answer(two))
  },
  'a duplicated tab': async ({ context, open }) => {
    const one = await open()
    const goOn = await inFlight(one)
    const two = await duplicate(context, one)
    await two.waitForSelector('#buy')
    await two.click('#buy')
    await inLine(two)
    goOn()
    expect(await answer(one)).toBe(await answer(two))
  },
}

for (const storage of ['session', 'local']) {
  describe(`with keys in ${storage}Storage, under StrictMode`, () => {
    const counter = `/t/counter?storage=${storage}`
    for (const [name, scene] of Object.entries(SCENES)) {
      test(`${name} is one order`, async () => {
        for (let round = 0; round < ROUNDS; round++) expect(await play(counter, scene)).toBe(1)
      })
    }

    test('a refresh while in flight shows the answer without another click, and sends no POST', async () => {
      for (let round = 0; round < ROUNDS; round++) {
        expect(await play(counter, async ({ open }) => {
          const page = await open()
          const goOn = await inFlight(page)
          await page.reload()
          await page.waitForFunction(() => document.querySelector('#status')?.textContent === 'pending')
          const posts = shop.front.posts()
          goOn()
          expect(await answer(page)).toMatch(/^\d+$/)
          expect(shop.front.posts()).toBe(posts)
        })).toBe(1)
      }
    })

    test('a gateway that is killed and started again is one order', async () => {
      for (let round = 0; round < ROUNDS; round++) {
        expect(await play(counter, async ({ open }) => {
          const page = await open()
          const kept = deferred()
          shop.front.hold = kept.promise
          const begun = shop.front.answers
          await page.click('#buy')
          await shop.front.answered(begun + 1)
          await shop.killGateway()
          shop.front.hold = undefined
          shop.front.cutAll()
          kept.open()
          await shop.startGateway()
          expect(await answer(page)).toMatch(/^\d+$/)
        })).toBe(1)
      }
    })

    test('a click while the gateway is down waits for it', async () => {
      expect(await play(counter, async ({ open }) => {
        const page = await open()
        await shop.killGateway()
        const posts = shop.front.posts()
        await page.click('#buy')
        await shop.front.saw(posts + 1)
        await shop.startGateway()
        expect(await answer(page)).toMatch(/^\d+$/)
      })).toBe(1)
    })

    test('offline in the middle, and back, is one order', async () => {
      for (let round = 0; round < ROUNDS; round++) {
        expect(await play(counter, async ({ context, open }) => {
          const page = await open()
          const goOn = await inFlight(page)
          shop.front.dropResponses = 1
          await context.setOffline(true)
          shop.front.cutAll()
          goOn()
          await page.click('#buy')
          await context.setOffline(false)
          expect(await answer(page)).toMatch(/^\d+$/)
        })).toBe(1)
      }
    })

    test('a gateway killed while the service works leaves an unknown: it says so, and makes no second order', async () => {
      expect(await play(counter, async ({ open }) => {
        const page = await open()
        const goOn = await inFlight(page)
        await shop.killGateway()
        await shop.startGateway()
        goOn()
        await page.waitForFunction(() => document.querySelector('#status')?.textContent === 'error')
        expect(await page.textContent('#error')).toBe('OutcomeUnknownError')
        await page.reload()
        await page.waitForFunction(() => document.querySelector('#status')?.textContent === 'interrupted')
        await page.click('#buy')
        await page.waitForFunction(() => document.querySelector('#status')?.textContent === 'error')
      })).toBe(1)
    })
  })
}

describe('the naive client, so that these tests are seen to be able to fail', () => {
  for (const [name, scene] of Object.entries(SCENES)) {
    test(`${name} is several orders`, async () => {
      // The two tabs of the naive one get an answer each, and these differ.
      const made = await play('/t/naive', (it) => scene(it).catch((error: unknown) => {
        if (!/tab/.test(name)) throw error
      }))
      expect(made).toBeGreaterThan(1)
    })
  }
})
