const MONTHS = ['Jan', 'Feb', 'Mar', 'Apr', 'May', 'Jun', 'Jul', 'Aug', 'Sep', 'Oct', 'Nov', 'Dec']
const IMF = /^\w{3}, (\d\d) (\w{3}) (\d{4}) (\d\d:\d\d:\d\d) GMT$/
const RFC_850 = /^\w+day, (\d\d)-(\w{3})-(\d\d) (\d\d:\d\d:\d\d) GMT$/
const ASCTIME = /^\w{3} (\w{3}) ([ \d]\d) (\d\d:\d\d:\d\d) (\d{4})$/

/**
 * `Retry-After` in milliseconds, of both forms. A date is measured from the response's `Date`, since a client's clock may
 * be wrong. `undefined`: it says nothing.
 */
export function retryAfter(value: string | null, now: number, date?: string | null): number | undefined {
  const text = (value ?? '').trim()
  if (/^\d+$/.test(text)) {
    const ms = Number(text) * 1000
    return Number.isSafeInteger(ms) ? ms : undefined
  }
  const at = httpDate(text, now)
  return at === undefined ? undefined : Math.max(0, at - (httpDate((date ?? '').trim(), now) ?? now))
}

function httpDate(text: string, now: number): number | undefined {
  let found: RegExpExecArray | null
  let [day, month, year, time]: (string | undefined)[] = []
  if ((found = IMF.exec(text))) [, day, month, year, time] = found
  else if ((found = RFC_850.exec(text))) {
    [, day, month, year, time] = found
    // Two digits that seem to be more than 50 years ahead are of the past century (RFC 9110, 5.6.7).
    const thisYear = new Date(now).getUTCFullYear()
    const full = thisYear - (thisYear % 100) + Number(year)
    year = String(full > thisYear + 50 ? full - 100 : full)
  } else if ((found = ASCTIME.exec(text))) [, month, day, time, year] = found
  const index = MONTHS.indexOf(month ?? '')
  if (index < 0) return undefined
  const at = new Date(`${year}-${String(index + 1).padStart(2, '0')}-${String(Number(day)).padStart(2, '0')}T${time}Z`)
  return at.getUTCDate() === Number(day) ? at.getTime() : undefined
}
