import type { Reporter, TestCase, TestModule } from 'vitest/node'

/** Says what the tests came to in libtest's words, which `cargo xtask test` counts. */
export default class Tally implements Reporter {
  onTestRunEnd(modules: readonly TestModule[], errors: readonly unknown[]): void {
    let passed = 0
    // An error outside of any test is a failure too.
    let failed = errors.length
    let ignored = 0
    const count = (test: TestCase, file: string) => {
      const { state } = test.result()
      if (state === 'passed') return void (passed += 1)
      // A filter on names leaves the others out; else nothing is to be skipped.
      if (state === 'skipped' && process.env['ONCEWARD_ONLY']) return
      if (state === 'skipped') ignored += 1
      else failed += 1
      console.log(`test ${file} > ${test.fullName} ... ${state === 'skipped' ? 'ignored' : 'FAILED'}`)
    }
    for (const module of modules) {
      for (const test of module.children.allTests()) count(test, module.relativeModuleId)
      failed += module.errors().length
    }
    console.log(`test result: ${failed ? 'FAILED' : 'ok'}. ${passed} passed; ${failed} failed; ${ignored} ignored; 0 measured; 0 filtered out`)
  }
}
