// SPDX-License-Identifier: BSD-3-Clause

package page_test

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"github.com/zcvet/zcvet/harness/report/page"
	"github.com/zcvet/zcvet/harness/report/reporttest"
	"github.com/zcvet/zcvet/harness/verdict"
)

var screenshots = flag.String("screenshots", "", "directory to leave a picture of every page in")

// browsers are the names under which distributions install one.
var browsers = []string{"chromium", "chromium-browser", "google-chrome", "google-chrome-stable"}

// startBrowser starts a headless browser for the test. Without one the test is
// skipped, but not where continuous integration should have installed it.
func startBrowser(t *testing.T) context.Context {
	t.Helper()
	if testing.Short() {
		t.Skip("starts a browser")
	}
	var path string
	for _, name := range browsers {
		if found, err := exec.LookPath(name); err == nil {
			path = found
			break
		}
	}
	if path == "" {
		if os.Getenv("CI") != "" {
			t.Fatalf("none of %s is installed", strings.Join(browsers, ", "))
		}
		t.Skip("no browser to look at the page with; install the package chromium")
	}
	options := append([]chromedp.ExecAllocatorOption{},
		chromedp.ExecPath(path), chromedp.UserDataDir(t.TempDir()), chromedp.Headless, chromedp.NoSandbox, chromedp.DisableGPU,
		chromedp.NoFirstRun, chromedp.NoDefaultBrowserCheck,
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-background-networking", true),
		chromedp.Flag("disable-component-update", true), chromedp.Flag("disable-sync", true), chromedp.Flag("disable-dev-shm-usage", true),
		chromedp.WSURLReadTimeout(2*time.Minute),
	)
	ctx, stop := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(stop)
	ctx, stop = chromedp.NewContext(ctx)
	t.Cleanup(stop)
	ctx, stop = context.WithTimeout(ctx, 15*time.Minute)
	t.Cleanup(stop)
	return ctx
}

// seen is what a page did beside showing itself.
type seen struct {
	lock     sync.Mutex
	requests []string
	errors   []string
}

func (s *seen) listen(ctx context.Context) {
	chromedp.ListenTarget(ctx, func(event any) {
		s.lock.Lock()
		defer s.lock.Unlock()
		switch event := event.(type) {
		case *network.EventRequestWillBeSent:
			if !strings.HasPrefix(event.Request.URL, "data:") {
				s.requests = append(s.requests, event.Request.URL)
			}
		case *runtime.EventExceptionThrown:
			s.errors = append(s.errors, event.ExceptionDetails.Error())
		case *runtime.EventConsoleAPICalled:
			s.errors = append(s.errors, fmt.Sprintf("console.%s", event.Type))
		case *log.EventEntryAdded:
			s.errors = append(s.errors, event.Entry.Text)
		}
	})
}

// audit is what a page is asked about itself; the answers are in the fields.
type audit struct {
	Overflow    int      // how far the page is wider than the window
	Wide        []string // what makes it so
	H1          int
	Order       []string // headings that skip a level
	Landmarks   []string
	Unnamed     []string // regions, links, buttons and tables without a name
	BrokenLinks []string // links into the page that lead nowhere
	Duplicates  []string // ids that occur twice
	Unreachable []string // things that scroll and cannot be scrolled by keyboard
	Contrast    []string // text that is hard to read
	Background  string
}

// examine is run in the page.
const examine = `(() => {
	// Not innerWidth: a phone zooms out until everything fits.
	const width = document.documentElement.clientWidth;
	const out = {Overflow: document.documentElement.scrollWidth - width, Wide: [], H1: document.querySelectorAll("h1").length,
		Order: [], Landmarks: [], Unnamed: [], BrokenLinks: [], Duplicates: [], Unreachable: [], Contrast: []};
	const name = e => e.tagName.toLowerCase() + (e.id ? "#" + e.id : "") + (e.className ? "." + e.className : "") + " " + (e.textContent || "").trim().slice(0, 30);
	const scrolled = e => { for (let p = e.parentElement; p; p = p.parentElement) if (/auto|scroll/.test(getComputedStyle(p).overflowX)) return true; return false; };
	for (const e of document.body.querySelectorAll("*")) {
		const box = e.getBoundingClientRect();
		if (box.width > 0 && box.right > width + 1 && !scrolled(e) && !e.classList.contains("skip-link")) out.Wide.push(name(e) + " " + Math.round(box.right));
		const s = getComputedStyle(e);
		if (/auto|scroll/.test(s.overflowX + s.overflowY) && (e.scrollWidth > e.clientWidth + 1 || e.scrollHeight > e.clientHeight + 1) && e.tabIndex < 0 && !e.querySelector("a, button")) out.Unreachable.push(name(e));
	}
	let last = 0;
	for (const h of document.querySelectorAll("h1, h2, h3, h4, h5, h6")) {
		const level = Number(h.tagName[1]);
		if (level > last + 1) out.Order.push(name(h));
		last = level;
	}
	for (const tag of ["header", "nav", "main", "footer"]) if (document.querySelectorAll("body > " + tag).length === 1) out.Landmarks.push(tag);
	for (const e of document.querySelectorAll("section, article, nav, [role=region], a, button, pre[tabindex]")) {
		const by = e.getAttribute("aria-labelledby");
		const label = e.getAttribute("aria-label") || (by && document.getElementById(by) && document.getElementById(by).textContent) || (/^(A|BUTTON)$/.test(e.tagName) && e.textContent.trim());
		if (!label && !(e.tagName === "ARTICLE" && e.querySelector("h3"))) out.Unnamed.push(name(e));
	}
	for (const t of document.querySelectorAll("table")) if (!t.querySelector("th[scope], caption")) out.Unnamed.push(name(t));
	for (const a of document.querySelectorAll('a[href^="#"]')) if (!document.getElementById(decodeURIComponent(a.hash.slice(1)))) out.BrokenLinks.push(a.hash);
	const ids = {};
	for (const e of document.querySelectorAll("[id]")) { if (ids[e.id]) out.Duplicates.push(e.id); ids[e.id] = true; }
	const parse = c => (c.match(/[\d.]+/g) || []).map(Number);
	const luminance = ([r, g, b]) => { const f = v => { v /= 255; return v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; }; return .2126 * f(r) + .7152 * f(g) + .0722 * f(b); };
	const behind = e => { for (let p = e; p; p = p.parentElement) { const c = parse(getComputedStyle(p).backgroundColor); if (c.length === 3 || c[3] > .99) return c; } return [255, 255, 255]; };
	for (const e of document.body.querySelectorAll("*")) {
		if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()) || !e.getClientRects().length || /^(SCRIPT|STYLE|OPTION|METER)$/.test(e.tagName)) continue;
		const a = luminance(parse(getComputedStyle(e).color)), b = luminance(behind(e));
		const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
		if (ratio < 4.5) out.Contrast.push(name(e) + " " + ratio.toFixed(2));
	}
	out.Background = getComputedStyle(document.body).backgroundColor;
	return out;
})()`

// TestInABrowser opens every kind of page the way its readers do: on a desk and on
// a phone, in light and in dark.
func TestInABrowser(t *testing.T) {
	browser := startBrowser(t)
	pages := map[string]func(io.Writer) error{}
	for name, run := range map[string]func(*testing.T) *verdict.Run{"pass": passing, "fail": failing, "crash": crashing, "coverage": covered, "unbuilt": unbuilt} {
		pages[name] = func(w io.Writer) error { return page.WriteRun(w, run(t)) }
	}
	pages["comparison"] = func(w io.Writer) error { return page.WriteComparison(w, reporttest.Comparison()) }
	pages["comparison-no-apply"] = func(w io.Writer) error { return page.WriteComparison(w, reporttest.DoesNotApply()) }
	pages["check"] = func(w io.Writer) error { return page.WriteCheck(w, reporttest.Checks()) }
	for name, write := range pages {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "report.html")
			out, err := os.Create(file)
			if err != nil {
				t.Fatal(err)
			}
			if err := write(out); err != nil {
				t.Fatal(err)
			}
			if err := out.Close(); err != nil {
				t.Fatal(err)
			}
			look(t, browser, name, file)
		})
	}
}

func look(t *testing.T, browser context.Context, name, file string) {
	tab, stop := chromedp.NewContext(browser)
	defer stop()
	var did seen
	did.listen(tab)
	address := (&url.URL{Scheme: "file", Path: file}).String()
	backgrounds := make(map[string]string)
	if err := chromedp.Run(tab, network.Enable(), runtime.Enable(), log.Enable()); err != nil {
		t.Fatal(err)
	}
	for _, window := range []struct {
		name          string
		width, height int64
	}{{"desk", 1280, 900}, {"phone", 360, 740}} {
		for _, scheme := range []string{"light", "dark"} {
			var a audit
			actions := []chromedp.Action{
				emulation.SetDeviceMetricsOverride(window.width, window.height, 1, window.name == "phone"),
				emulation.SetEmulatedMedia().WithFeatures([]*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}, {Name: "prefers-reduced-motion", Value: "reduce"}}),
				chromedp.Navigate(address),
				chromedp.WaitReady("footer"),
			}
			if *screenshots != "" {
				actions = append(actions, picture(name, window.name, scheme, ""))
			}
			// Everything a reader can open is open when it is measured.
			actions = append(actions,
				chromedp.Evaluate(`for (const d of document.querySelectorAll("details")) d.open = true`, nil),
				chromedp.Evaluate(examine, &a))
			if *screenshots != "" {
				actions = append(actions, picture(name, window.name, scheme, "-open"))
			}
			if err := chromedp.Run(tab, actions...); err != nil {
				t.Fatalf("%s, %s: %v", window.name, scheme, err)
			}
			where := window.name + ", " + scheme
			if a.Overflow > 0 || len(a.Wide) > 0 {
				t.Errorf("%s: the page is %d pixels wider than the window: %q", where, a.Overflow, a.Wide)
			}
			if a.H1 != 1 || len(a.Order) > 0 {
				t.Errorf("%s: %d headings of level 1; levels are skipped at %q", where, a.H1, a.Order)
			}
			if got := strings.Join(a.Landmarks, " "); got != "header nav main footer" {
				t.Errorf("%s: landmarks %s", where, got)
			}
			for what, list := range map[string][]string{
				"without a name": a.Unnamed, "links that lead nowhere": a.BrokenLinks, "ids that occur twice": a.Duplicates,
				"cannot be scrolled by keyboard": a.Unreachable, "text of too little contrast": a.Contrast,
			} {
				if len(list) > 0 {
					t.Errorf("%s: %s: %q", where, what, list[:min(len(list), 10)])
				}
			}
			backgrounds[scheme] = a.Background
		}
	}
	if backgrounds["light"] == backgrounds["dark"] {
		t.Errorf("dark mode changes nothing: %v", backgrounds)
	}
	keyboard(t, tab)
	did.lock.Lock()
	defer did.lock.Unlock()
	for _, request := range did.requests {
		if request != address {
			t.Errorf("the page asked for %s", request)
		}
	}
	if len(did.errors) > 0 {
		t.Errorf("the page complained: %q", did.errors)
	}
}

// keyboard walks through the page with the tabulator: first comes the way past the
// navigation, and everything that can be operated is reached.
func keyboard(t *testing.T, tab context.Context) {
	t.Helper()
	var first string
	var reached, all int
	err := chromedp.Run(tab,
		chromedp.Evaluate(`scrollTo(0, 0); document.activeElement.blur(); window.reached = new Set(); document.addEventListener("focusin", e => window.reached.add(e.target))`, nil),
		chromedp.KeyEvent("\t"),
		chromedp.Evaluate(`document.activeElement.className`, &first),
		chromedp.Evaluate(`[...document.querySelectorAll("a[href], button, summary, input, [tabindex='0']")].filter(e => e.getClientRects().length && !e.disabled).length`, &all),
	)
	if err != nil {
		t.Fatal(err)
	}
	if first != "skip-link" {
		t.Errorf("the first stop of the tabulator is %q, not the way to the report", first)
	}
	if err := chromedp.Run(tab, chromedp.KeyEvent(strings.Repeat("\t", all+5))); err != nil {
		t.Fatal(err)
	}
	if err := chromedp.Run(tab, chromedp.Evaluate(`window.reached.size`, &reached)); err != nil {
		t.Fatal(err)
	}
	if reached < all {
		t.Errorf("the tabulator reaches %d of %d things", reached, all)
	}
}

func picture(page, window, scheme, state string) chromedp.Action {
	return chromedp.ActionFunc(func(ctx context.Context) error {
		var data []byte
		if err := chromedp.FullScreenshot(&data, 100).Do(ctx); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(*screenshots, page+"-"+window+"-"+scheme+state+".png"), data, 0o666)
	})
}
