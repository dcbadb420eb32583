/** What the tests in a browser have in common, this package's and those of the demo's page. */
import type { Browser, BrowserContext, Page } from 'playwright-core'
import { deferred, type FaultProxy } from './faultProxy.js'

export type { Browser, BrowserContext, Page }

/** How often each scene is played. */
export const ROUNDS = process.env['ONCEWARD_LONG'] ? 20 : 3

export interface Scene {
  readonly context: BrowserContext
  readonly open: () => Promise<Page>
}

export interface Stage {
  readonly browser: Browser
  readonly doors: readonly FaultProxy[]
  /** Brings a new page to where its button can be pressed. */
  readonly arrive: (page: Page) => Promise<unknown>
  /** How many orders there are, by client. */
  readonly count: () => Promise<readonly number[]>
}

/** How many orders a scene made, by client, in a browser that knows nothing yet. */
export async function play({ browser, doors, arrive, count }: Stage, scene: (scene: Scene) => Promise<void>): Promise<number[]> {
  for (const door of doors) door.heal()
  const before = await count()
  const context = await browser.newContext()
  try {
    await scene({
      context,
      open: async () => {
        const page = await context.newPage()
        await arrive(page)
        return page
      },
    })
    return (await count()).map((now, i) => now - before[i]!)
  } finally {
    await context.close()
  }
}

/** Presses, until N responses have come to this proxy, where they are held. Returns how to let them go. */
export async function inFlight(door: FaultProxy, press: () => Promise<void>, answers = 1): Promise<() => void> {
  const open = deferred()
  door.hold = open.promise
  const begun = door.answers
  await press()
  await door.answered(begun + answers)
  return () => {
    door.hold = undefined
    open.open()
  }
}

/** What a browser copies for a tab that is duplicated, it copies for a window that a page opens: sessionStorage. */
export async function duplicate(context: BrowserContext, page: Page): Promise<Page> {
  const [copy] = await Promise.all([context.waitForEvent('page'), page.evaluate(() => void window.open(location.href))])
  return copy
}

/** Until it holds in a page, asked again and again: `waitForFunction` takes a promise for a yes. */
export async function until(page: Page, holds: () => Promise<boolean>): Promise<void> {
  while (!(await page.evaluate(holds))) await new Promise((resolve) => setTimeout(resolve, 20))
}

/** Until a tab waits for another one's turn: a press that comes after the first is settled is another order. */
export const inLine = (page: Page) => until(page, async () => (await navigator.locks.query()).pending!.length > 0)
