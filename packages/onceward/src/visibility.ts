/** Whether this page was left. A send that had not begun by then must not leave when the page comes back. */

let visits = 0
let isHidden = false

globalThis.addEventListener?.('pagehide', () => {
  visits++
  isHidden = true
})
globalThis.addEventListener?.('pageshow', () => (isHidden = false))

/** Returns a function that is true once the page was left since. */
export function watchPage(): () => boolean {
  const visit = isHidden ? -1 : visits
  return () => visit !== visits
}
