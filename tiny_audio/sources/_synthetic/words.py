"""Word lists of the synthetic source: names of people, cities and streets, and words of home and phone commands."""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FIRST_NAMES: tuple[str, ...] = _words("""
    aaron abigail adam adrian agnes alan albert alexander alfred alice alison amanda amber amy andrea andrew angela
    ann anna anthony arnold arthur ashley audrey austin barbara barry beatrice benjamin bernard beth betty beverly
    bill blake bob bonnie bradley brandon brenda brian bridget bruce bryan calvin cameron carl carla carmen carol
    caroline carrie catherine cecil chad charles charlotte cheryl chester chloe christian christina christine
    christopher cindy claire clara clarence claudia clayton clifford clyde cody colin connie connor corey craig
    crystal curtis cynthia daisy dale daniel danielle darlene david dawn dean deborah dennis derek diana diane
    dominic donald donna dora doris dorothy douglas duane dustin dylan earl eddie edgar edith edna edward edwin
    eileen elaine eleanor elizabeth ella ellen elmer elsie emily emma eric erica ernest esther ethan ethel eugene
    eva evelyn faith felix fiona florence floyd frances francis frank franklin frederick gabriel gail gary gavin
    gene geoffrey george gerald gertrude gilbert gina gladys glenn gloria gordon grace gregory hannah harold harriet
    harry harvey hazel heather hector heidi helen henry herbert herman holly howard hubert hugh ian ida irene iris
    isaac isabel ivan jack jackie jacob jake janet jasmine jason jay jeffrey jennifer jeremy jerome jerry jesse
    jessica jill joan joann joel john johnny jonathan jordan joseph josephine joshua joyce juan juanita judith judy
    julia julian june justin karen karl katherine keith kelly kenneth kevin kimberly kirk kristen kurt kyle larry
    laura lauren laurence leah leo leonard leroy leslie lester lewis lillian linda lindsay lisa lloyd logan lois
    lorraine louis louise lucas lucille lucy luke luther lydia lynn mabel madison malcolm marc marcus margaret maria
    marian marilyn mario marion marjorie mark marshall martha martin marvin mary mason maurice max maxine megan
    melanie melissa melvin mercedes michael michelle mildred milton minnie miriam mitchell molly monica morris
    myrtle nancy naomi natalie neil nicholas nicole nina nora norma norman olga oliver olivia oscar owen pamela
    patricia paul paula pauline pearl peggy penny percy peter philip phyllis rachel ralph ramona raymond rebecca
    regina renee rhonda richard rita robert roberta robin rodney roger roland ronald rosa rosemary ross roy ruben
    ruby rufus russell ruth ryan sabrina sally samantha samuel sandra sara scott sean seth shane shannon sharon
    shawn sheila shelly sherman shirley sidney simon sonia sophia spencer stacy stanley stella stephanie stephen
    steven stuart susan suzanne sylvia tamara tanya tara ted teresa terry thelma theodore thomas tiffany tim tina
    todd tom tracy travis tyler valerie vanessa vera verna vernon veronica vicki victor victoria vincent viola
    violet virginia vivian wade wallace walter wanda warren wayne wendy wesley wilbur willard william willie wilma
    winifred yolanda yvonne zachary zoe
""")

SURNAMES: tuple[str, ...] = _words("""
    abbott adams alexander allen anderson armstrong arnold atkins austin bailey baker baldwin ballard banks barker
    barnes barnett barrett bates beck bell bennett berry bishop black blair blake bowen bowman boyd bradley brady
    brewer briggs brooks brown bryant buchanan burgess burke burns burton butler byrd caldwell campbell cannon
    carpenter carr carroll carter castillo chambers chandler chapman clark clarke cobb cohen coleman collins cook
    cooper cox craig crawford cross cruz cunningham curtis daniels davidson davies davis dawson day delgado dennis
    diaz dixon douglas doyle drake duncan dunn edwards elliott ellis erickson estrada evans farmer ferguson
    fernandez fields fisher fitzgerald fleming fletcher flores ford foster fowler fox francis franklin frazier
    freeman fuller garcia gardner garner garrett george gibbs gibson gilbert gomez gonzales goodman goodwin gordon
    graham grant graves gray green greene griffin griffith gross guerrero guzman hale hall hamilton hammond hampton
    hansen hanson hardy harmon harper harrington harris harrison hart harvey hawkins hayes henderson henry herrera
    hicks higgins hill hines hodges hoffman holland holmes holt hopkins horton howard howell hubbard hudson huff
    hughes hunt hunter ingram jackson jacobs james jenkins jennings jensen jimenez johnson johnston jones joseph
    keller kelley kelly kennedy kim king klein knight lambert lane lang larson lawrence lawson lee leonard lewis
    lindsey little lloyd logan long lopez love lowe lucas lynch lyons mack maldonado malone mann manning marsh
    marshall martin martinez mason matthews maxwell mcbride mccarthy mccormick mccoy mcdaniel mcdonald mcgee mcguire
    mckenzie mckinney mclaughlin medina mendez mendoza meyer miles miller mills mitchell montgomery moody moore
    morales moran moreno morgan morris morrison morton moss mullins munoz murphy murray myers nash neal nelson
    newman newton nguyen nichols norman norris norton obrien oliver olson ortega ortiz osborne owen owens padilla
    page palmer parker parks patel patterson patton payne pearson pena perez perkins perry peters peterson phillips
    pierce pope porter potter powell powers price quinn ramirez ramos ramsey ray reed reese reeves reid reyes
    reynolds rhodes rice richards richardson riley rios rivera robbins roberts robertson robinson rodgers rodriguez
    rogers romero rose ross rowe ruiz russell ryan salazar sanchez sanders sandoval santiago santos schmidt
    schneider schroeder schultz schwartz scott shaw shelton sherman silva simmons simon simpson sims singh smith
    snyder soto sparks spencer stanley steele stephens stevens stevenson stewart stokes stone strickland sullivan
    sutton swanson taylor terry thomas thompson thornton todd torres townsend tran tucker turner underwood valdez
    vargas vasquez vaughn vega wagner walker wallace walsh walters walton ward warner warren washington waters
    watkins watson watts weaver webb weber webster welch wells west wheeler white wilkins williams williamson willis
    wilson wise wolfe wong wood woods wright yates young zimmerman
""")

CITIES: tuple[str, ...] = _words("""
    aberdeen akron albany albuquerque alexandria allentown amarillo anaheim anchorage ann-arbor arlington asheville
    athens atlanta augusta aurora austin bakersfield baltimore bangor baton-rouge beaumont bellevue berkeley
    billings birmingham bismarck bloomington boise boston boulder bridgeport brooklyn brownsville buffalo burlington
    cambridge canton carson-city casper cedar-rapids chandler charleston charlotte chattanooga chesapeake cheyenne
    chicago cincinnati clearwater cleveland clinton columbia columbus concord corona corpus-christi cranberry dallas
    dayton daytona-beach dearborn decatur denton denver des-moines detroit dover dubuque duluth durham eau-claire
    edison el-paso elgin elizabeth erie escondido eugene evanston evansville everett fairbanks fargo fayetteville
    flint fort-wayne fort-worth frederick fremont fresno frisco fullerton gainesville galveston garland gary
    glendale grand-rapids great-falls green-bay greensboro greenville gresham hammond hampton harrisburg hartford
    hayward henderson hialeah hoboken hollywood honolulu houston huntington huntsville idaho-falls independence
    indianapolis irvine irving jackson jacksonville jersey-city johnstown joliet kalamazoo kansas-city kenosha
    kettering knoxville lafayette lakewood lancaster lansing laredo las-cruces las-vegas lawrence lewiston lexington
    lima lincoln little-rock livonia long-beach longview los-angeles louisville lowell lubbock lynchburg macon
    madison manchester mcallen medford memphis meridian mesa miami midland milwaukee minneapolis missoula mobile
    modesto monroeville montgomery morgantown muncie murfreesboro naperville nashville new-haven new-orleans
    new-york newark newport norfolk norman norwalk oakland oceanside odessa ogden oklahoma-city olympia omaha
    ontario orlando oxnard palmdale pasadena paterson pensacola peoria philadelphia phoenix pierre pittsburgh plano
    pomona portland princeton providence provo pueblo racine raleigh rapid-city reading redding reno richardson
    richmond riverside roanoke rochester rockford sacramento saginaw salem salinas salt-lake-city san-antonio
    san-diego san-francisco san-jose santa-fe santa-rosa sarasota savannah scottsdale scranton seattle sharon
    shreveport sioux-falls somerville south-bend spokane springfield stamford stockton sunnyvale syracuse tacoma
    tallahassee tampa tempe toledo topeka torrance trenton troy tucson tulsa tuscaloosa tyler utica vallejo ventura
    virginia-beach visalia waco warren washington waterbury wheeling wichita wilmington winston-salem worcester
    yonkers york youngstown yuma
""")
"""Names of cities. A hyphen stands for the space in a name, such as ``winston-salem``."""

STREETS: tuple[str, ...] = _words("""
    acorn alder amberson aspen atwood bayard beacon beech beechwood bellefield bigelow birch boulevard bouquet
    braddock bridge broadway brookside butler carson cedar centre center chapel cherry chestnut church clover
    college cottage craig crescent cypress dawson denniston devonshire douglas eastern edgewood ellsworth elm
    evergreen fairfield fairview fernwald fifth forbes forest frankstown friendship garden glenwood grandview
    greenfield grove hampshire harbor hawthorne hazelwood highland hillcrest hobart holly inverness ivy jackson
    jefferson juniper kentucky lakeview lakewood laurel liberty lincoln linden locust lombard madison magnolia
    mahoning main maple margaretta market maryland meadow melwood mill monitor morewood mulberry murdoch murray
    negley northumberland oakland oakwood olive orchard overlook park parkview penn phillips pine pleasant pocusset
    poplar prospect railroad ridge river riverside rosewood schenley school shadeland shady shaler smallman solway
    spring spruce stanton station summit sunset sycamore tamarack terrace tilbury union valley vermont victoria vine
    walnut washington water wellesley westminster wightman wilkins willow windsor winthrop woodland woodlawn
""")

STREET_KINDS: tuple[str, ...] = ("street", "avenue", "road", "drive", "lane", "court", "place", "boulevard")

# The lists below are short, like the contacts and rooms of one household. A model can learn them from a few hours of
# speech.
CONTACTS: tuple[str, ...] = ("anna", "carlos", "daniel", "emma", "george", "helen", "julia", "kevin", "maria", "peter")

RELATIVES: tuple[str, ...] = ("mom", "dad", "my sister", "my brother", "the office", "the doctor")

ROOMS: tuple[str, ...] = ("kitchen", "bedroom", "bathroom", "living room", "hallway", "garage", "office", "garden")

DEVICES: tuple[str, ...] = ("light", "lights", "lamp", "fan", "heater", "television", "radio")

OPENINGS: tuple[str, ...] = ("door", "window", "blinds")

SONGS: tuple[str, ...] = ("jazz", "rock music", "classical music", "the news")

ERRANDS: tuple[str, ...] = ("am late", "am on my way", "will be home soon", "will call back", "need the keys")
