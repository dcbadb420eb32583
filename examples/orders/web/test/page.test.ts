import { execFileSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { openBrowser } from '../../../../packages/onceward/test/support/browser.js'
import { deferred } from '../../../../packages/onceward/test/support/faultProxy.js'
import { duplicate, inFlight as held, inLine, play as playOn, ROUNDS, type Browser, type Page, type Scene } from '../../../../packages/onceward/test/support/scenes.js'
import { Demo } from './support/demo.js'

type Client = 'onceward' | 'naive'

const web = fileURLToPath(new URL('..', import.meta.url))

let browser: Browser
let demo: Demo
beforeAll(async () => {
  ;[browser, demo] = await Promise.all([openBrowser(), Demo.start()])
})
afterAll(async () => {
  await browser?.close()
  await demo?.close()
})

/** How many orders a scene made with each client. */
async function play(scene: (scene: Scene) => Promise<void>): Promise<Record<Client, number>> {
  const arrive = async (page: Page) => {
    await page.goto(demo.url)
    await page.waitForSelector('#order:enabled')
    // The switches are known to work once the page has seen what network it came through.
    await page.waitForFunction(() => !document.querySelector('.note a'))
  }
  const count = () => Promise.all([demo.orders('onceward'), demo.orders('naive')])
  const [onceward, naive] = await playOn({ browser, doors: [demo.door], arrive, count }, scene)
  return { onceward: onceward!, naive: naive! }
}

const side = (client: Client, rest = '') => `#${client}${rest}`
/** The order that a side says it placed. */
async function said(page: Page, client: Client): Promise<string> {
  const placed = page.locator(side(client, ' .said'), { hasText: /^Order #\d+ is placed\.$/ })
  await placed.waitFor()
  return (await placed.textContent())!
}
/** That both have their answer, and one has one order on the page, the other several. */
async function settled(...pages: Page[]): Promise<void> {
  for (const page of pages) {
    expect(await said(page, 'onceward')).toBe(await said(pages[0]!, 'onceward'))
    await page.waitForSelector(side('onceward', '[data-orders="1"][data-status="success"]'))
  }
  await said(pages[0]!, 'naive')
  await pages[0]!.waitForFunction(() => Number(document.querySelector<HTMLElement>('#naive')!.dataset['orders']) > 1)
}
const turnOn = (page: Page, trouble: string) => page.check(`#${trouble}`, { force: true })

/** Until both clients' orders are in the database, while their answers are held. */
const inFlight = (page: Page) => held(demo.door, () => page.click('#order'), 2)

/** By a person's own hand: each ends with its answers on the page. What they make is counted after. */
const BY_HAND: Record<string, (scene: Scene) => Promise<void>> = {
  'a double click': async ({ open }) => {
    const page = await open()
    const open_ = deferred()
    demo.door.hold = open_.promise
    await page.dblclick('#order')
    demo.door.hold = undefined
    open_.open()
    await settled(page)
  },
  'a refresh while in flight': async ({ open }) => {
    const page = await open()
    const goOn = await inFlight(page)
    await page.reload()
    await page.click('#order')
    goOn()
    await settled(page)
  },
  'two tabs': async ({ open }) => {
    const [one, two] = [await open(), await open()]
    const goOn = await inFlight(one)
    await two.click('#order')
    await inLine(two)
    goOn()
    await settled(one, two)
  },
  'a duplicated tab': async ({ context, open }) => {
    const one = await open()
    const goOn = await inFlight(one)
    const two = await duplicate(context, one)
    await two.click('#order')
    goOn()
    await settled(one, two)
  },
  'offline in the middle, and back': async ({ context, open }) => {
    const page = await open()
    const goOn = await inFlight(page)
    await context.setOffline(true)
    demo.door.cutAll()
    goOn()
    await page.waitForSelector('.requests [data-client=onceward][data-state=lost]')
    await context.setOffline(false)
    await settled(page)
  },
}

/** By a switch of the page. */
const BY_SWITCH = ['lose', 'slow', 'kill', 'double', 'refresh', 'tab'] as const

const once = ({ onceward, naive }: Record<Client, number>) => {
  expect(onceward).toBe(1)
  // The naive client stood beside it in the same trouble, so that this is seen to be able to fail.
  expect(naive).toBeGreaterThan(1)
}

const scenes = (rounds = ROUNDS) => {
  for (const [name, scene] of Object.entries(BY_HAND)) {
    test(`${name} is one order, and several of the naive client`, async () => {
      for (let round = 0; round < rounds; round++) once(await play(scene))
    })
  }
  for (const trouble of BY_SWITCH) {
    test(`the switch "${trouble}" makes one order, and several of the naive client`, async () => {
      for (let round = 0; round < rounds; round++) {
        const restarts = demo.restarts
        once(await play(async ({ context, open }) => {
          const page = await open()
          await turnOn(page, trouble)
          const second = trouble === 'tab' ? context.waitForEvent('page') : undefined
          await page.click('#order')
          await settled(page, ...(second ? [await second] : []))
        }))
        expect(demo.restarts - restarts).toBe(trouble === 'kill' ? 1 : 0)
      }
    })
  }
}

describe('the page as it is served', () => {
  scenes()

  test('without trouble, both make one, and the next customer another', async () => {
    expect(await play(async ({ open }) => {
      const page = await open()
      for (const _ of [1, 2]) {
        await page.click('#order')
        await said(page, 'onceward')
        await said(page, 'naive')
        await page.waitForSelector(side('naive', '[data-orders="1"]'))
        expect(await page.isDisabled('#order')).toBe(true)
        await page.click('#next')
      }
      expect(await page.locator('.requests [data-outcome=stored]').count()).toBe(4)
    })).toEqual({ onceward: 2, naive: 2 })
  })

  test('the keyboard alone is enough', async () => {
    once(await play(async ({ open }) => {
      const page = await open()
      const focused = () => page.evaluate(() => document.activeElement!.id)
      await page.keyboard.press('Tab')
      await page.keyboard.press('ArrowRight')
      expect(await page.isChecked('.menu label:nth-of-type(2) input')).toBe(true)
      for (let n = 0; (await focused()) !== 'lose'; n++) {
        expect(n).toBeLessThan(10)
        await page.keyboard.press('Tab')
      }
      await page.keyboard.press('Space')
      for (let n = 0; (await focused()) !== 'order'; n++) {
        expect(n).toBeLessThan(10)
        await page.keyboard.press('Tab')
      }
      await page.keyboard.press('Enter')
      await settled(page)
    }))
  })

  test('it fits a phone, and what is touched is large enough', async () => {
    const context = await browser.newContext({ viewport: { width: 360, height: 740 } })
    const page = await context.newPage()
    await page.goto(demo.url)
    await turnOn(page, 'lose')
    await page.click('#order')
    await settled(page)
    expect(await page.evaluate(() => document.documentElement.scrollWidth)).toBe(360)
    for (const target of await page.locator('#order, #next, .switch, .menu label').all()) {
      expect((await target.boundingBox())!.height).toBeGreaterThanOrEqual(40)
    }
    await context.close()
  })

  test('pictures of it for the README are left in a folder', async () => {
    // Of its own, so that it counts from one.
    const fresh = await Demo.start()
    const folder = process.env['ONCEWARD_PICTURES'] ?? mkdtempSync(join(tmpdir(), 'onceward-pictures-'))
    for (const [name, colorScheme, width] of [['light', 'light', 1080], ['dark', 'dark', 1080], ['phone', 'dark', 360]] as const) {
      const context = await browser.newContext({ colorScheme, viewport: { width, height: 740 } })
      const page = await context.newPage()
      await page.goto(fresh.url)
      await turnOn(page, 'lose')
      await turnOn(page, 'double')
      await page.click('#order')
      await settled(page)
      await page.waitForSelector(side('naive', '[data-orders="3"][data-status=success]'))
      await page.evaluate(() => (document.activeElement as HTMLElement).blur())
      await page.screenshot({ path: join(folder, `page-${name}.png`), fullPage: true, animations: 'disabled' })
      // Dark is dark, and light is light.
      const ground = await page.evaluate(() => getComputedStyle(document.body).backgroundColor)
      expect(Number(/\d+/.exec(ground)![0]) < 128).toBe(colorScheme === 'dark')
      await context.close()
    }
    await fresh.close()
    if (!process.env['ONCEWARD_PICTURES']) rmSync(folder, { recursive: true })
  })
})

describe('the page in development, whose StrictMode runs each effect twice', () => {
  const folder = mkdtempSync(join(tmpdir(), 'onceward-page-'))
  beforeAll(() => {
    execFileSync('node', ['build.js', folder, '--development'], { cwd: web, stdio: 'inherit' })
    demo.door.pages.set('/counter.js', { type: 'text/javascript', body: readFileSync(join(folder, 'counter.js'), 'utf8') })
  })
  afterAll(() => {
    demo.door.pages.delete('/counter.js')
    rmSync(folder, { recursive: true })
  })

  scenes()
})
